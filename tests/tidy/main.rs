//! What the compiler cannot check of this repository: floors, lengths, and whether
//! the documents speak of things that exist.
//!
//! Every check returns what is wrong as `file:line: what`; a test shows all of it
//! at once, so that one run is enough to mend everything.

mod tree;

use std::collections::{BTreeMap, BTreeSet};
use tree::{File, Tree, names, use_statements};

/// Lines that a source file aims at; one below has no use for a reason.
const AIMED_LINES: usize = 500;
/// Lines that a source file may have without giving a reason.
const MAX_LINES: usize = 700;
/// A longer file says why in its header.
const LENGTH_REASON: &str = "//! length: ";
/// Lines of a decision record.
const MAX_RECORD_LINES: usize = 25;

fn report(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// The crates that a crate's sources and tests may name, by the folder that they lie in.
const FLOORS: [(&str, &[&str]); 5] = [
    ("agent/model/", &[]),
    ("agent/sources/", &["caudal_model", "caudal_sources"]),
    ("sinks/", &["caudal_model", "caudal_sinks"]),
    ("checkpoints/", &["caudal_model", "caudal_checkpoints"]),
    (
        "agent/src/",
        &[
            "caudal_model",
            "caudal_sources",
            "caudal_sinks",
            "caudal_checkpoints",
            "caudal",
        ],
    ),
];
const CRATES: [&str; 6] = [
    "caudal_model",
    "caudal_sources",
    "caudal_sinks",
    "caudal_checkpoints",
    "caudal_tests",
    "caudal",
];

#[test]
fn crates_name_only_the_floors_below_them() {
    let mut findings = Vec::new();
    for (folder, allowed) in FLOORS {
        for file in Tree::read().under(folder).filter(|f| f.is_rust()) {
            for (number, line) in file.code_lines() {
                for krate in CRATES {
                    let path = format!("{krate}::");
                    if !allowed.contains(&krate) && names(line, &path) {
                        findings.push(format!(
                            "{}:{number}: {folder} must not name {krate}",
                            file.path
                        ));
                    }
                }
            }
        }
    }
    for (manifest, allowed) in [
        ("agent/model/Cargo.toml", vec![]),
        ("agent/sources/Cargo.toml", vec!["caudal-model"]),
        ("sinks/Cargo.toml", vec!["caudal-model"]),
        ("checkpoints/Cargo.toml", vec!["caudal-model"]),
    ] {
        let file = Tree::read().file(manifest);
        for (number, line) in file.lines() {
            let named = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if named.starts_with("caudal-") && !allowed.contains(&named) {
                findings.push(format!("{manifest}:{number}: must not depend on {named}"));
            }
        }
    }
    report(findings);
}

#[test]
fn the_model_does_no_io() {
    let mut findings = Vec::new();
    for file in Tree::read().under("agent/model/").filter(|f| f.is_rust()) {
        for (number, line) in file.code_lines() {
            for word in ["std::fs", "std::net", "std::process", "tokio", "async fn"] {
                if names(line, word) {
                    findings.push(format!(
                        "{}:{number}: the model must not use {word}",
                        file.path
                    ));
                }
            }
        }
    }
    report(findings);
}

/// The modules of concrete sources and sinks, by the crate that owns them.
const CONCRETE: [(&str, &[&str]); 2] = [
    ("caudal_sources", &["postgres", "mysql", "sqlserver"]),
    (
        "caudal_sinks",
        &[
            "s3",
            "file",
            "local",
            "memory",
            "S3Store",
            "FileStore",
            "MemoryStore",
        ],
    ),
];

#[test]
fn only_start_names_concrete_sources_and_sinks() {
    let mut findings = Vec::new();
    for file in Tree::read().under("agent/src/").filter(|f| f.is_rust()) {
        if file.path == "agent/src/start.rs" {
            continue;
        }
        for (krate, concrete) in CONCRETE {
            let root = format!("{krate}::");
            let end = file.code_end();
            let inline = file.code_lines().take_while(|(n, _)| *n <= end);
            let inline = inline.map(|(n, l)| (n, l.to_owned()));
            let uses = use_statements(file).into_iter().filter(|(n, _)| *n <= end);
            for (number, text) in uses.chain(inline) {
                let Some(at) = text.find(&root) else { continue };
                let rest = &text[at + root.len()..];
                // A path ends at the first blank; a braced group of a `use` ends at its semicolon.
                let path = if rest.starts_with('{') {
                    rest
                } else {
                    rest.split([' ', '(', '<', ';', ',']).next().unwrap_or(rest)
                };
                for name in concrete.iter().filter(|name| names(path, name)) {
                    findings.push(format!(
                        "{}:{number}: only agent/src/start.rs may name {krate}'s {name}",
                        file.path
                    ));
                }
            }
        }
    }
    findings.sort();
    findings.dedup();
    report(findings);
}

#[test]
fn files_are_short_or_say_why() {
    let mut findings = Vec::new();
    for file in Tree::read().files.iter().filter(|f| f.is_rust()) {
        let count = file.code_end();
        let reason = file
            .text
            .lines()
            .find_map(|l| l.strip_prefix(LENGTH_REASON));
        match reason {
            None if count > MAX_LINES => findings.push(format!(
                "{}: {count} lines; split it, or say why in its header: `{LENGTH_REASON}…`",
                file.path
            )),
            Some(_) if count <= AIMED_LINES => findings.push(format!(
                "{}: {count} lines need no reason for their length",
                file.path
            )),
            _ => {}
        }
        // A fuzz target is one call of the function that it is named for.
        let is_tests =
            file.path.ends_with("tests.rs") || file.path.starts_with("tests/fuzz/fuzz_targets/");
        if !is_tests && !file.text.starts_with("//!") {
            findings.push(format!(
                "{}: no `//!` header says what the file owns",
                file.path
            ));
        }
    }
    report(findings);
}

#[test]
fn no_file_is_named_for_nothing() {
    let mut findings = Vec::new();
    for file in &Tree::read().files {
        for part in file.path.split(['/', '.']) {
            if [
                "util", "utils", "common", "helper", "helpers", "manager", "misc",
            ]
            .contains(&part)
            {
                findings.push(format!(
                    "{}: `{part}` does not say what the file owns",
                    file.path
                ));
            }
        }
    }
    report(findings);
}

/// Documents whose words are checked against the tree.
fn documents(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files.iter().filter(|f| f.path.ends_with(".md"))
}

#[test]
fn documents_name_paths_that_exist() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    for file in documents(tree) {
        for (number, line) in file.lines() {
            for path in tree::spoken_paths(tree, line) {
                if !tree.exists(&path) {
                    findings.push(format!("{}:{number}: there is no {path}", file.path));
                }
            }
            for target in tree::link_targets(line) {
                let resolved = file.resolve(target);
                if resolved.as_ref().is_none_or(|p| !tree.exists(p)) {
                    findings.push(format!(
                        "{}:{number}: the link to {target} leads nowhere",
                        file.path
                    ));
                }
            }
        }
    }
    for path in [
        "docker-compose.yml",
        "justfile",
        ".ci/run",
        "tests/run",
        "tests/demo/run",
    ] {
        let file = tree.file(path);
        for (number, line) in file.lines() {
            for path in tree::spoken_paths(tree, line) {
                if !tree.exists(&path) {
                    findings.push(format!("{}:{number}: there is no {path}", file.path));
                }
            }
        }
    }
    report(findings);
}

#[test]
fn sources_cite_only_documents_that_exist() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    for file in &tree.files {
        for (number, line) in file.lines() {
            for word in line.split(|c: char| !(c.is_ascii_alphanumeric() || "._-/".contains(c))) {
                let Some(stem) = word.strip_suffix(".md") else {
                    continue;
                };
                let name = stem.rsplit('/').next().unwrap_or(stem);
                let is_document = name.len() > 2 && name.chars().all(|c| c.is_ascii_uppercase());
                if is_document
                    && !tree
                        .files
                        .iter()
                        .any(|f| f.path.ends_with(&format!("{name}.md")))
                {
                    findings.push(format!(
                        "{}:{number}: there is no document {word}",
                        file.path
                    ));
                }
            }
        }
    }
    report(findings);
}

#[test]
fn the_tree_speaks_of_no_one_s_machine_and_leaves_nothing_for_later() {
    // Put together, so that this file does not find itself.
    let forbidden = [
        concat!("/home", "/"),
        concat!("/root", "/"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("../", "shared"),
    ];
    let mut findings = Vec::new();
    for file in &Tree::read().files {
        for (number, line) in file.lines() {
            for word in forbidden {
                if line.contains(word) {
                    findings.push(format!("{}:{number}: {word}", file.path));
                }
            }
        }
    }
    report(findings);
}

/// The numbers of `INV-n` in a line.
fn invariants(line: &str) -> Vec<u32> {
    line.match_indices("INV-")
        .filter_map(|(at, found)| {
            let rest = &line[at + found.len()..];
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..digits].parse().ok()
        })
        .collect()
}

#[test]
fn invariants_that_are_cited_are_defined_and_those_defined_are_tested() {
    let tree = Tree::read();
    let defined: BTreeSet<u32> = tree
        .file("ARCHITECTURE.md")
        .lines()
        .filter(|(_, l)| l.trim_start().starts_with("- **INV-"))
        .filter_map(|(_, l)| invariants(l).first().copied())
        .collect();
    assert_eq!(
        defined,
        (1..=10).collect(),
        "ARCHITECTURE.md defines INV-1 to INV-10, one a line"
    );
    let mut findings = Vec::new();
    let mut tested = BTreeSet::new();
    for file in &tree.files {
        let is_test = file.path.starts_with("tests/") && file.is_rust();
        for (number, line) in file.lines() {
            for n in invariants(line) {
                if !defined.contains(&n) {
                    findings.push(format!(
                        "{}:{number}: INV-{n} is not in ARCHITECTURE.md",
                        file.path
                    ));
                }
                if is_test && !file.path.starts_with("tests/tidy/") {
                    tested.insert(n);
                }
            }
        }
    }
    for n in defined.difference(&tested) {
        findings.push(format!("no test under tests/ names INV-{n}"));
    }
    report(findings);
}

#[test]
fn decision_records_are_short_and_have_a_number_of_their_own() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    let mut numbers = BTreeMap::new();
    for file in tree.under("docs/adr/") {
        let name = file.path.trim_start_matches("docs/adr/");
        let lines = file.text.lines().count();
        if lines > MAX_RECORD_LINES {
            findings.push(format!(
                "{}: {lines} lines; a record has at most {MAX_RECORD_LINES}",
                file.path
            ));
        }
        let Some(number) = name.get(..4).and_then(|n| n.parse::<u32>().ok()) else {
            findings.push(format!("{}: a record is named NNNN-title.md", file.path));
            continue;
        };
        if let Some(other) = numbers.insert(number, name) {
            findings.push(format!("{}: has the number of {other}", file.path));
        }
    }
    report(findings);
}

#[test]
fn the_changelog_has_the_version_that_is_built() {
    let tree = Tree::read();
    let version = env!("CARGO_PKG_VERSION");
    let listed = tree
        .file("CHANGELOG.md")
        .lines()
        .any(|(_, l)| l.starts_with(&format!("## {version}")));
    assert!(listed, "CHANGELOG.md has no section `## {version}`");
}

/// What the comment of an allowed sleep begins with: it paces a load, it waits for nothing.
const PACE: &str = "// pace:";

#[test]
fn the_suite_waits_for_events_and_never_for_time() {
    let mut findings = Vec::new();
    for file in Tree::read().under("tests/suite/").filter(|f| f.is_rust()) {
        let mut previous = "";
        for (number, line) in file.lines() {
            let sleeps = names(line, "sleep(") && !line.trim_start().starts_with("//");
            if sleeps && !line.contains(PACE) && !previous.contains(PACE) {
                findings.push(format!(
                    "{}:{number}: wait for the event; a sleep that only paces a load says `{PACE} …`",
                    file.path
                ));
            }
            previous = line;
        }
    }
    report(findings);
}

#[test]
fn commands_that_the_documents_name_can_be_run() {
    use std::os::unix::fs::PermissionsExt;
    let tree = Tree::read();
    for path in [
        ".ci/run",
        "tests/run",
        "tests/demo/run",
        "tests/bench/run",
        "deploy/lint",
    ] {
        let mode = std::fs::metadata(tree.root.join(path))
            .unwrap()
            .permissions()
            .mode();
        assert!(mode & 0o111 != 0, "{path} is not executable");
    }
}
