//! The fuzz targets over their kept corpus, and over seeded mutations of it.
//!
//! This is what the fuzzers' findings rest on between runs: an input that once broke a
//! decoder is a file in `tests/fuzz/corpus/<target>/`, and every build runs it again.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use caudal_sources::fuzz::TARGETS;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Mutations of each target's corpus together; `CAUDAL_MUTATIONS` sets another number,
/// `CAUDAL_FUZZ_TARGETS` the targets that begin with it, `CAUDAL_SEED` where the mutations begin.
const MUTATIONS: usize = 4_000;
/// What one target may add to the process's greatest memory, in KiB.
const MEMORY_KIB: u64 = 192 << 10;
/// And to its greatest address space, where a promised length would be reserved.
const ADDRESS_KIB: u64 = 512 << 10;

struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize
    }

    /// Below `n`; 0 for 0.
    fn below(&mut self, n: usize) -> usize {
        self.next() % n.max(1)
    }
}

/// One to four changes to `bytes`; `other` lends what is spliced in.
fn mutate(rng: &mut XorShift, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len());
        match rng.below(8) {
            0 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|b| *b ^= 1 << (at % 8)),
            1 => {
                let new = rng.next() as u8;
                bytes.iter_mut().skip(at).take(1).for_each(|b| *b = new);
            }
            2 => bytes.truncate(at),
            // Lengths of one, two, four and eight bytes.
            3 => {
                let width = 1 << rng.below(4);
                bytes
                    .iter_mut()
                    .skip(at)
                    .take(width)
                    .for_each(|b| *b = 0xff);
            }
            4 => {
                let width = 1 << rng.below(4);
                bytes.iter_mut().skip(at).take(width).for_each(|b| *b = 0);
            }
            5 => {
                let from = rng.below(other.len());
                let len = rng.below(other.len() - from + 1);
                let end = (at + rng.below(len + 1)).min(bytes.len());
                bytes.splice(at..end, other[from..from + len].iter().copied());
            }
            6 => {
                let end = at + rng.below(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
            _ => {
                let piece = bytes[at..]
                    .iter()
                    .copied()
                    .take(1 + rng.below(32))
                    .collect::<Vec<_>>();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes.truncate(64 << 10);
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fuzz/corpus")
        .join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    // A directory's order is the file system's own.
    files.sort();
    files
        .into_iter()
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect()
}

/// The process's greatest resident memory and address space, in KiB; zeros off Linux.
fn peak() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    (of("VmHWM:"), of("VmPeak:"))
}

/// Whether the target went through; if not, says how to keep the input.
fn passes(what: &str, target: fn(&[u8]), input: &[u8]) -> bool {
    let passed = catch_unwind(AssertUnwindSafe(|| target(input))).is_ok();
    if !passed {
        eprintln!("{what}; to keep the input: echo {} | xxd -r -p", hex(input));
    }
    passed
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A number of the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

#[test]
fn no_target_panics_or_takes_memory_over_its_corpus() {
    let mut failed = 0;
    let mutations = usize::try_from(setting("CAUDAL_MUTATIONS", MUTATIONS as u64)).unwrap();
    let seed = setting("CAUDAL_SEED", 0x9e37_79b9_7f4a_7c15).max(1);
    let wanted = std::env::var("CAUDAL_FUZZ_TARGETS").unwrap_or_default();
    for (name, target) in TARGETS.iter().filter(|(name, _)| name.starts_with(&wanted)) {
        let files = corpus(name);
        assert!(!files.is_empty(), "{name} has no corpus");
        let before = peak();
        for (path, bytes) in &files {
            failed += usize::from(!passes(&path.display().to_string(), *target, bytes));
        }
        let mut rng = XorShift(seed);
        for i in 0..mutations {
            let mut bytes = files[i % files.len()].1.clone();
            let other = &files[rng.below(files.len())].1;
            mutate(&mut rng, &mut bytes, other);
            let what = format!("{name}, mutation {i}");
            failed += usize::from(!passes(&what, *target, &bytes));
        }
        let after = peak();
        assert!(
            after.0 - before.0 < MEMORY_KIB,
            "{name} held {} KiB",
            after.0 - before.0
        );
        assert!(
            after.1 - before.1 < ADDRESS_KIB,
            "{name} reserved {} KiB",
            after.1 - before.1
        );
    }
    assert_eq!(failed, 0, "inputs that broke their target");
}
