//! Seeded simulation of the whole pipeline, with everything that can go wrong made to.
//!
//! One seed is one life of a stream: a scripted source, a store in memory that fails,
//! loses replies and delays, agents that die at named crash points, a second agent that
//! takes the stream over, checkpoints that vanish. Time is simulated, so a life takes
//! milliseconds. After every death, and at the end, the lake alone must show that the
//! invariants hold:
//!
//! | invariant | what is checked |
//! |---|---|
//! | INV-1 | checkpoints vanish or fall behind between runs, and nothing changes |
//! | INV-2 | every commit begins where its predecessor ends; no epoch is missing |
//! | INV-3 | what the source was told to forget is in the lake; only whole transactions are |
//! | INV-4, INV-5, INV-6 | the folded lake equals the source at the head's position |
//! | INV-4, INV-6 | tables that are rewritten, dropped and created again are copied again |
//! | INV-7 | no `_seq` twice but for the rows of one copy |
//! | INV-2, INV-7 | a rewind names just the files of what it drops, and the lake goes on from its target |
//! | INV-8 | of two agents one ends fenced; a lost reply duplicates nothing |
//!
//! `CAUDAL_SIM_SEEDS=from..to` runs other seeds; a failure names its seed, and
//! `CAUDAL_SIM_TRACE=1` prints every log that is read. Encoding runs on real threads, so one
//! seed can interleave in more than one way.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod lake;
mod life;

use std::ops::Range;

fn seeds() -> Range<u64> {
    let Ok(spec) = std::env::var("CAUDAL_SIM_SEEDS") else {
        return 0..1500;
    };
    let (from, to) = spec.split_once("..").expect("CAUDAL_SIM_SEEDS is from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// A week of runs that a scheduler starts every five minutes.
#[test]
fn inv_1_to_8_hold_in_a_week_of_scheduled_runs() {
    let totals = life::week(7);
    println!("{totals:?}");
    assert!(totals.crashes > 20 && totals.fenced > 2, "{totals:?}");
}

/// Lives are independent: each core takes every n-th seed.
#[test]
fn inv_1_to_8_hold_in_every_life() {
    let range = seeds();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores)
            .map(|core| {
                let range = range.clone();
                scope.spawn(move || {
                    let mut total = life::Tally::default();
                    for seed in range.filter(|s| s % cores == core) {
                        total += life::live(seed);
                    }
                    total
                })
            })
            .collect();
        let mut sum = life::Tally::default();
        for t in threads {
            match t.join() {
                Ok(tally) => sum += tally,
                Err(e) => std::panic::resume_unwind(e),
            }
        }
        sum
    });
    println!("{totals:?}");
    // A simulation in which nothing goes wrong proves nothing.
    if range.end - range.start >= 500 {
        assert!(totals.crashes > 100, "{totals:?}");
        assert!(totals.fenced > 10, "{totals:?}");
        assert!(totals.rebuilds > 10, "{totals:?}");
        assert!(totals.commits > 1000, "{totals:?}");
        assert!(totals.schema_changes > 500, "{totals:?}");
        assert!(totals.rewinds > 100, "{totals:?}");
    }
}
