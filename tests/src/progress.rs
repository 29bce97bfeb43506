//! Progress of long steps: a bar on a terminal, a line now and then in a log.

use std::io::{stderr, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a log gets a line.
const INTERVAL: Duration = Duration::from_secs(10);

/// A long step, under way.
pub struct Progress {
    label: String,
    started: Instant,
    bar: Option<ProgressBar>,
    length: u64,
    position: AtomicU64,
    /// When the log last got a line, in milliseconds since the start.
    said: AtomicU64,
}

impl Progress {
    /// A step of `length` parts; of unknown length if that is 0.
    pub fn bar(label: &str, length: u64) -> Progress {
        if length == 0 {
            return Progress::spinner(label);
        }
        let template = "{spinner:.cyan} {prefix}  {bar:32.cyan/dim}  {pos}/{len}  {wide_msg:.dim}";
        Progress::new(label, length, template)
    }

    /// A step of unknown length.
    pub fn spinner(label: &str) -> Progress {
        Progress::new(label, 0, "{spinner:.cyan} {prefix}  {elapsed:.dim}  {wide_msg:.dim}")
    }

    fn new(label: &str, length: u64, template: &str) -> Progress {
        let bar = (stderr().is_terminal() && std::env::var_os("CI").is_none()).then(|| {
            let bar = ProgressBar::new(length);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Progress {
            label: label.to_owned(),
            started: Instant::now(),
            bar,
            length,
            position: AtomicU64::new(0),
            said: AtomicU64::new(0),
        }
    }

    /// Counts `parts` more as done.
    pub fn advance(&self, parts: u64) {
        let position = self.position.fetch_add(parts, Ordering::Relaxed) + parts;
        match &self.bar {
            // What was not foreseen makes the bar longer, not wrong.
            Some(bar) => {
                bar.set_length(self.length.max(position));
                bar.set_position(position);
            }
            None => self.log(""),
        }
    }

    /// Shows what the step is at.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.trim().to_owned()),
            None => self.log(text),
        }
    }

    fn log(&self, text: &str) {
        let elapsed = self.started.elapsed();
        let now = elapsed.as_millis() as u64;
        let said = self.said.load(Ordering::Relaxed);
        if now < said + INTERVAL.as_millis() as u64 {
            return;
        }
        self.said.store(now, Ordering::Relaxed);
        let of = match (self.position.load(Ordering::Relaxed), self.length) {
            (0, 0) => String::new(),
            (position, 0) => format!(" {position}"),
            (position, length) => format!(" {position}/{}", length.max(position)),
        };
        eprintln!("  {} ...{of} {} s  {}", self.label, elapsed.as_secs(), text.trim());
    }

    /// Ends the step and leaves one line about it.
    pub fn done(self, summary: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        println!("  {:<34} {summary}  ({seconds:.1} s)", self.label);
    }
}

/// A step that fails leaves no bar behind.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
