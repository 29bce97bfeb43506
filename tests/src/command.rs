//! Running programs: a failure carries what the program said.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

/// How many of a failed program's last lines its error repeats.
const TAIL: usize = 40;

/// The command as one would type it, for messages.
pub fn display(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy().into_owned();
        let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let words: Vec<String> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
    words.join(" ")
}

/// Runs the command to its end and returns its standard output.
///
/// # Errors
/// The command cannot be started or fails; the error repeats what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = display(command);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{}", output.status, said.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown}: its output is not UTF-8"))
}

/// Whether the command can be started and succeeds; what it prints is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs the command and gives each line of its output and of its errors to `line` as it comes.
/// Returns whether it succeeded.
///
/// # Errors
/// The command cannot be started, or its output cannot be read.
pub fn lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let shown = display(command);
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    // The command keeps its ends of the pipe open; without this the reader would wait for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
        bytes.clear();
    }
    Ok(child.wait()?.success())
}

/// Like [`lines`], for commands whose output matters only when they fail.
///
/// # Errors
/// As [`lines`], and the command failing: the error repeats its last lines.
pub fn watched(command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
    let mut tail = VecDeque::with_capacity(TAIL + 1);
    let succeeded = lines(command, |text| {
        line(text);
        tail.push_back(text.to_owned());
        if tail.len() > TAIL {
            tail.pop_front();
        }
    })?;
    if !succeeded {
        bail!("{} failed:\n{}", display(command), tail.make_contiguous().join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_quotes_what_a_shell_would_split() {
        let mut command = Command::new("psql");
        command.args(["-c", "SELECT 'a'", ""]);
        assert_eq!(display(&command), r"psql -c 'SELECT '\''a'\''' ''");
    }

    #[test]
    fn failures_carry_the_last_lines_of_both_streams() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let mut seen = Vec::new();
        let error = watched(&mut command, |line| seen.push(line.to_owned())).unwrap_err();
        assert_eq!(seen, ["one", "two"]);
        assert!(error.to_string().ends_with("failed:\none\ntwo"), "{error}");
    }

    #[test]
    fn output_fails_with_what_was_said() {
        let error = output(Command::new("sh").args(["-c", "echo no >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().ends_with("no"), "{error}");
        assert_eq!(output(Command::new("echo").arg("yes")).unwrap(), "yes\n");
    }
}
