//! Another machine's clock: a library that an agent is started with, through which its wall
//! clock stands apart from everybody else's. The monotonic clock is left alone.

use crate::{Agent, Result};
use std::path::Path;

/// Every way in which the C library tells the time of day.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
  const char *text = getenv("TEST_CLOCK_OFFSET");
  return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int result = syscall(SYS_clock_gettime, clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += offset();
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *into) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (into) *into = exact.tv_sec;
  return exact.tv_sec;
}
"#;

/// Has an agent run with a clock that is `seconds` ahead (negative: behind). `dir` takes the
/// library, which is built with the C compiler that the workspace needs anyway.
pub fn set_apart(agent: &mut Agent, seconds: i64, dir: &Path) -> Result<()> {
    let library = crate::preload::build(dir, "clock", SHIM)?;
    agent.env("LD_PRELOAD", &library.display().to_string());
    agent.env("TEST_CLOCK_OFFSET", &seconds.to_string());
    Ok(())
}
