//! A power cut: what a process had not made durable when it died is gone.
//!
//! The agent is started with a library that notes what is synced, linked and renamed. After its
//! death the files below a directory are brought to the worst state that this permits: contents
//! that were never synced vanish, others end where they did when they were synced last, and a
//! name whose directory was not synced since may be gone or not.

use crate::{Agent, Result, bail};
use rand::Rng;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// What makes things durable, and what moves them.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note(char what, long size, const char *a, const char *b) {
  static int trace = -1;
  char line[9000];
  if (trace < 0) {
    const char *path = getenv("TEST_POWER_TRACE");
    if (!path) return;
    trace = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  }
  int n = snprintf(line, sizeof line, "%c\t%ld\t%s\t%s\n", what, size, a, b);
  if (n > 0 && n < (int)sizeof line) syscall(SYS_write, trace, line, n);
}

static void synced(int fd) {
  char link[64], path[4096];
  struct stat now;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long n = readlink(link, path, sizeof path - 1);
  if (n <= 0 || fstat(fd, &now)) return;
  path[n] = 0;
  note(S_ISDIR(now.st_mode) ? 'D' : 'F', now.st_size, path, "");
}

int fsync(int fd) {
  int result = syscall(SYS_fsync, fd);
  if (!result) synced(fd);
  return result;
}

int fdatasync(int fd) {
  int result = syscall(SYS_fdatasync, fd);
  if (!result) synced(fd);
  return result;
}

int linkat(int from, const char *a, int to, const char *b, int flags) {
  int result = syscall(SYS_linkat, from, a, to, b, flags);
  if (!result) note('L', 0, a, b);
  return result;
}

int link(const char *a, const char *b) { return linkat(AT_FDCWD, a, AT_FDCWD, b, 0); }

int renameat2(int from, const char *a, int to, const char *b, unsigned flags) {
  int result = syscall(SYS_renameat2, from, a, to, b, flags);
  if (!result) note('R', 0, a, b);
  return result;
}

int renameat(int from, const char *a, int to, const char *b) { return renameat2(from, a, to, b, 0); }

int rename(const char *a, const char *b) { return renameat2(AT_FDCWD, a, AT_FDCWD, b, 0); }
"#;

/// Notes what an agent makes durable.
pub struct Power {
    library: PathBuf,
    trace: PathBuf,
}

/// What a cut has taken.
#[derive(Debug, Default, Clone, Copy)]
pub struct Taken {
    /// Files that are gone.
    pub files: u64,
    /// Files that end earlier.
    pub cut: u64,
    /// Files that are as they were.
    pub kept: u64,
}

impl Power {
    /// `dir` takes the library, which is built with the C compiler that the workspace needs anyway.
    pub fn new(dir: &Path) -> Result<Power> {
        Ok(Power {
            library: crate::preload::build(dir, "power", SHIM)?,
            trace: dir.join("power.trace"),
        })
    }

    /// Has an agent watched from its next start on.
    pub fn watch(&self, agent: &mut Agent) {
        agent.env("LD_PRELOAD", &self.library.display().to_string());
        agent.env("TEST_POWER_TRACE", &self.trace.display().to_string());
    }

    /// Leaves of the files below `root` what is sure to outlive a power cut now. What was there
    /// when the agent was first watched must be durable.
    pub fn cut(&self, root: &Path, before: &HashSet<PathBuf>) -> Result<Taken> {
        let (synced, unsure) = self.durable()?;
        let mut taken = Taken::default();
        for file in files(root)? {
            let length = std::fs::metadata(&file)?.len();
            let held = synced.get(&file).copied();
            let held = held.or_else(|| before.contains(&file).then_some(length));
            let named = !unsure.contains(&file) || rand::rng().random_bool(0.5);
            match held.filter(|_| named) {
                None => {
                    std::fs::remove_file(&file)?;
                    taken.files += 1;
                }
                Some(held) if held < length => {
                    let open = std::fs::File::options().write(true).open(&file)?;
                    open.set_len(held)?;
                    taken.cut += 1;
                }
                Some(_) => taken.kept += 1,
            }
        }
        Ok(taken)
    }

    /// How long each file was when it was synced last, and names that may not be.
    fn durable(&self) -> Result<(HashMap<PathBuf, u64>, HashSet<PathBuf>)> {
        let trace = std::fs::read_to_string(&self.trace).unwrap_or_default();
        let (mut synced, mut unsure) = (HashMap::new(), HashSet::new());
        for line in trace.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [what, size, a, b] = fields[..] else {
                bail!("the trace says {line:?}");
            };
            let (a, b) = (PathBuf::from(a), PathBuf::from(b));
            match what {
                "F" => {
                    synced.insert(a, size.parse()?);
                }
                "D" => unsure.retain(|p: &PathBuf| p.parent() != Some(&a)),
                "L" | "R" => {
                    let held = match what {
                        "L" => synced.get(&a).copied(),
                        _ => synced.remove(&a),
                    };
                    synced.remove(&b);
                    synced.extend(held.map(|held| (b.clone(), held)));
                    unsure.insert(b);
                }
                other => bail!("the trace says {other:?}"),
            }
        }
        Ok((synced, unsure))
    }
}

/// Every file below a directory.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => dirs.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    Ok(found)
}
