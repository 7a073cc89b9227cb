//! A full disk, for as long as a test wants: a library that an agent is started with refuses every
//! write below a directory with ENOSPC while a file exists.

use crate::{Agent, Result};
use std::path::{Path, PathBuf};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int full(int fd) {
  const char *below = getenv("TEST_DISK_BELOW"), *flag = getenv("TEST_DISK_FULL");
  char link[64], path[4096];
  if (!below || !flag || syscall(SYS_access, flag, F_OK)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  if (strncmp(path, below, strlen(below))) return 0;
  errno = ENOSPC;
  return 1;
}

ssize_t write(int fd, const void *from, size_t n) {
  return full(fd) ? -1 : syscall(SYS_write, fd, from, n);
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t at) {
  return full(fd) ? -1 : syscall(SYS_pwrite64, fd, from, n, at);
}

ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) {
  return full(fd) ? -1 : syscall(SYS_pwrite64, fd, from, n, at);
}

ssize_t writev(int fd, const struct iovec *from, int n) {
  return full(fd) ? -1 : syscall(SYS_writev, fd, from, n);
}

int fallocate(int fd, int mode, off_t at, off_t n) {
  return full(fd) ? -1 : syscall(SYS_fallocate, fd, mode, at, n);
}
"#;

/// A disk that a test can fill.
pub struct Disk {
    flag: PathBuf,
}

impl Disk {
    /// Has an agent take `below` for a disk from its next start on.
    pub fn of(agent: &mut Agent, below: &Path) -> Result<Disk> {
        let library = crate::preload::build(agent.dir(), "disk", SHIM)?;
        let flag = agent.dir().join("disk-is-full");
        agent.env("LD_PRELOAD", &library.display().to_string());
        agent.env("TEST_DISK_BELOW", &below.display().to_string());
        agent.env("TEST_DISK_FULL", &flag.display().to_string());
        Ok(Disk { flag })
    }

    /// No write succeeds from here on.
    pub fn fill(&self) -> Result<()> {
        Ok(std::fs::write(&self.flag, b"")?)
    }

    /// There is room again.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.flag)?)
    }
}
