//! The repository's own files, as the checks see them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file that belongs to the repository.
pub struct File {
    /// Relative to the root, with slashes.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// Every text file of the repository.
pub struct Tree {
    /// The repository's root.
    pub root: PathBuf,
    /// In order of their paths.
    pub files: Vec<File>,
}

/// Folders that hold what was made, not written.
const MADE: [&str; 4] = ["target", ".git", ".work", "corpus"];

fn walk(root: &Path, folder: &Path, into: &mut Vec<File>) {
    let entries = std::fs::read_dir(folder)
        .expect("a folder can be listed")
        .map(|e| e.expect("an entry can be read").path());
    for path in entries {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_symlink() || MADE.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, into);
        } else if let Ok(text) = std::fs::read_to_string(&path)
            && name != "Cargo.lock"
        {
            let path = path
                .strip_prefix(root)
                .expect("it was found below the root")
                .to_string_lossy()
                .into_owned();
            into.push(File { path, text });
        }
    }
}

impl Tree {
    /// The tree that this test was built from, read once.
    pub fn read() -> &'static Tree {
        static TREE: OnceLock<Tree> = OnceLock::new();
        TREE.get_or_init(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .expect("tests is a folder of the root")
                .to_owned();
            let mut files = Vec::new();
            walk(&root, &root, &mut files);
            files.sort_by(|a, b| a.path.cmp(&b.path));
            Tree { root, files }
        })
    }

    /// The files of a folder, whose name ends with a slash.
    pub fn under<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a File> {
        self.files
            .iter()
            .filter(move |f| f.path.starts_with(folder))
    }

    /// One file that must exist.
    pub fn file(&self, path: &str) -> &File {
        self.files
            .iter()
            .find(|f| f.path == path)
            .unwrap_or_else(|| panic!("there is no {path}"))
    }

    /// Whether the repository has this file or folder.
    pub fn exists(&self, path: &str) -> bool {
        self.root.join(path.trim_end_matches('/')).exists()
    }
}

impl File {
    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    /// The number of lines before the tests that stand in the same file.
    pub fn code_end(&self) -> usize {
        let tests = self.text.lines().position(|l| l == "#[cfg(test)]");
        tests.unwrap_or_else(|| self.text.lines().count())
    }

    /// Lines of code, without those that are only a comment.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines()
            .filter(|(_, l)| !l.trim_start().starts_with("//"))
    }

    /// A link's target relative to the root; `None` if it leaves the repository.
    pub fn resolve(&self, target: &str) -> Option<String> {
        let mut parts: Vec<&str> = self.path.split('/').collect();
        parts.pop();
        for part in target.split('/') {
            match part {
                "." | "" => {}
                ".." => {
                    parts.pop()?;
                }
                part => parts.push(part),
            }
        }
        Some(parts.join("/"))
    }
}

/// Whether `text` holds `word` as a word of its own.
pub fn names(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let open = word.ends_with(|c| !part(c));
        !before.is_some_and(part) && (open || !after.is_some_and(part))
    })
}

/// Every `use` of a file as one line, with the number of the line that it begins at.
pub fn use_statements(file: &File) -> Vec<(usize, String)> {
    let mut statements = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in file.code_lines() {
        let line = line.trim();
        if open.is_none() && (line.starts_with("use ") || line.starts_with("pub use ")) {
            open = Some((number, String::new()));
        }
        if let Some((_, text)) = &mut open {
            text.push_str(line);
            if line.ends_with(';') {
                statements.extend(open.take());
            }
        }
    }
    statements
}

/// Words of a line that are paths of the repository: they begin with one of its
/// top-level folders. A pattern or a placeholder is no path.
pub fn spoken_paths(tree: &Tree, line: &str) -> Vec<String> {
    let outside = |c: char| c.is_whitespace() || "`\"'()[],;|=".contains(c);
    line.split(outside)
        .map(|word| {
            word.trim_start_matches("./")
                .trim_end_matches(['.', ':', '}'])
        })
        .filter(|word| !word.contains(['*', '<', '{', '…', '$', '\\']))
        .filter_map(|word| {
            // `path:12` points at a line.
            let word = word.split(':').next().unwrap_or(word);
            let (first, _) = word.split_once('/')?;
            let known = [
                "agent",
                "sinks",
                "checkpoints",
                "tests",
                "deploy",
                "docs",
                ".ci",
            ];
            (known.contains(&first) && tree.exists(first)).then(|| word.to_owned())
        })
        .collect()
}

/// The targets of a line's Markdown links that lie in the repository.
pub fn link_targets(line: &str) -> Vec<&str> {
    line.match_indices("](")
        .filter_map(|(at, open)| line[at + open.len()..].split(')').next())
        .filter(|t| !t.contains("://") && !t.starts_with('#') && !t.starts_with("mailto:"))
        .map(|t| t.split('#').next().unwrap_or(t))
        .collect()
}
