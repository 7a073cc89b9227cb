//! Which requests fail, and how.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status (500, 503); nothing was done.
    Status(u16),
    /// The connection is closed; nothing was done.
    Reset,
    /// Done, and then the connection is closed without an answer.
    LostReply,
    /// Refused with this status and S3's code; nothing was done.
    Refused(u16, &'static str),
    /// Never answered.
    Silent,
}

/// The faults in force. All zero: none.
#[derive(Debug)]
pub struct Faults {
    /// Only requests whose path contains this are affected.
    pub only_path: String,
    /// Only requests of this method are affected; any if empty.
    pub only_method: String,
    /// Every request fails in this way.
    pub every: Option<Fault>,
    /// The next requests fail in this way, so many times; they come before the fractions.
    pub next: Vec<Fault>,
    /// The fraction of requests answered with 500 or 503.
    pub status_fraction: f64,
    /// The fraction of requests whose connection is closed.
    pub reset_fraction: f64,
    /// The fraction of writing requests (PUT, POST, DELETE) whose answer is lost.
    pub lost_reply_fraction: f64,
    /// Every request waits so long at first.
    pub delay: Duration,
    /// Faults that have happened.
    pub injected: u64,
    random: StdRng,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            only_path: String::new(),
            only_method: String::new(),
            every: None,
            next: Vec::new(),
            status_fraction: 0.0,
            reset_fraction: 0.0,
            lost_reply_fraction: 0.0,
            delay: Duration::ZERO,
            injected: 0,
            random: StdRng::seed_from_u64(0),
        }
    }
}

impl Faults {
    /// No more faults; the count of those that have happened stays.
    pub fn clear(&mut self) {
        *self = Faults {
            injected: self.injected,
            ..Faults::default()
        };
    }

    /// Makes the fractions' choices repeatable.
    pub fn seed(&mut self, seed: u64) {
        self.random = StdRng::seed_from_u64(seed);
    }

    /// What the next request gets.
    pub(super) fn next(&mut self, method: &str, path: &str) -> (Duration, Option<Fault>) {
        let affected = path.contains(&self.only_path)
            && (self.only_method.is_empty() || self.only_method == method);
        if !affected {
            return (Duration::ZERO, None);
        }
        let writes = matches!(method, "PUT" | "POST" | "DELETE");
        let fault = if self.every.is_some() {
            self.every
        } else if self.next.is_empty() {
            let dice: f64 = self.random.random();
            let lost = if writes {
                self.lost_reply_fraction
            } else {
                0.0
            };
            if dice < self.status_fraction {
                Some(Fault::Status(if self.random.random() { 500 } else { 503 }))
            } else if dice < self.status_fraction + self.reset_fraction {
                Some(Fault::Reset)
            } else if dice < self.status_fraction + self.reset_fraction + lost {
                Some(Fault::LostReply)
            } else {
                None
            }
        } else {
            Some(self.next.remove(0))
        };
        self.injected += u64::from(fault.is_some());
        (self.delay, fault)
    }
}
