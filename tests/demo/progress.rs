//! What a person sees while it runs: a line for each source on a terminal, plain lines elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

/// The lines of all sources.
pub struct Progress(MultiProgress);

impl Progress {
    /// Draws on standard error if that is a terminal.
    pub fn new() -> Progress {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Progress(MultiProgress::with_draw_target(target))
    }

    /// A line that begins with `name`.
    pub fn line(&self, name: String) -> Line {
        let bar = self.0.add(ProgressBar::new_spinner());
        // A template that does not parse is the default one: nothing depends on its look.
        let style = ProgressStyle::with_template("    {spinner} {prefix:16} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(name.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        Line {
            name,
            bar,
            phase: Mutex::default(),
        }
    }

    /// Says something above the lines.
    pub fn say(&self, text: &str) {
        self.0.suspend(|| crate::say(text));
    }
}

/// One source's line.
pub struct Line {
    name: String,
    bar: ProgressBar,
    phase: Mutex<String>,
}

impl Line {
    /// What is being done, and how far it is; without a terminal only a new `phase` is printed.
    pub fn show(&self, phase: &str, detail: &str) {
        self.bar.set_message(format!("{phase} {detail}"));
        if self.bar.is_hidden()
            && let Ok(mut last) = self.phase.lock()
            && *last != phase
        {
            crate::note(&format!("{:16} {phase}", self.name));
            phase.clone_into(&mut last);
        }
    }

    /// The line stays with this text.
    pub fn finish(&self, text: &str) {
        self.bar.finish_with_message(text.to_owned());
        if self.bar.is_hidden() {
            crate::note(&format!("{:16} {text}", self.name));
        }
    }
}
