//! Everything that has to hold: run by `cargo verify`.

use std::ffi::OsString;
use std::fs;
use std::io::{stdout, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use harness::command::{display, lines};
use harness::install::{self, Purpose, Tree};
use harness::regress::{self, Outcome};
use harness::state::State;
use harness::{cluster, provision, user};

const USAGE: &str = "\
Checks everything that has to hold, as CI does.

Usage: cargo verify [--only STEP]... [--soak] [--accept]

  --only STEP  run this step alone; may be repeated
  --soak       run the long scenario tests too
  --accept     take what the SQL regression tests print for what is expected

Steps:
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Format,
    Lint,
    Unit,
    PgTest,
    Install,
    Regress,
    Scenario,
}

impl Step {
    const ALL: [Step; 7] = [
        Step::Format,
        Step::Lint,
        Step::Unit,
        Step::PgTest,
        Step::Install,
        Step::Regress,
        Step::Scenario,
    ];

    fn name(self) -> &'static str {
        match self {
            Step::Format => "format",
            Step::Lint => "lint",
            Step::Unit => "unit",
            Step::PgTest => "pg_test",
            Step::Install => "install",
            Step::Regress => "regress",
            Step::Scenario => "scenario",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Step::Format => "rustfmt has nothing to change",
            Step::Lint => "clippy has nothing to say",
            Step::Unit => "unit tests of the layers that know nothing of PostgreSQL",
            Step::PgTest => "tests inside a server",
            Step::Install => "the extension, built in release mode, in a private PostgreSQL",
            Step::Regress => "SQL scripts and their expected output",
            Step::Scenario => "scenarios with clusters of their own, and clients",
        }
    }
}

struct Options {
    steps: Vec<Step>,
    soak: bool,
    accept: bool,
}

/// The command line; none if help is asked for.
fn options(arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options { steps: Vec::new(), soak: false, accept: false };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--soak" => options.soak = true,
            "--accept" => options.accept = true,
            "--only" => {
                let name = arguments.next().context("--only needs the name of a step")?;
                let step = Step::ALL.into_iter().find(|step| step.name() == name);
                let names: Vec<&str> = Step::ALL.iter().map(|step| step.name()).collect();
                options.steps.push(step.with_context(|| {
                    format!("there is no step {name}; there are {}", names.join(", "))
                })?);
            }
            "--help" | "-h" => return Ok(None),
            other => bail!("{other}: no such option; see cargo verify --help"),
        }
    }
    if options.steps.is_empty() {
        options.steps = Step::ALL.into();
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(Some(options)) => match verify(&options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
        Ok(None) => {
            print!("{USAGE}");
            for step in Step::ALL {
                println!("  {:<10} {}", step.name(), step.what());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn verify(options: &Options) -> Result<bool> {
    if options.steps.iter().any(|step| !matches!(step, Step::Format | Step::Unit)) {
        // Before the state is opened: PostgreSQL's package brings the user that runs servers.
        provision::packages()?;
    }
    let state = State::open()?;
    cluster::sweep(&state)?;
    let started = Instant::now();
    let mut total = Outcome::default();
    let mut summary: Vec<(Step, bool, Outcome, Duration)> = Vec::new();
    for &step in &options.steps {
        println!("\n=== {}: {}", step.name(), step.what());
        let before = Instant::now();
        let (ran, mut outcome) = match run(step, options, &state) {
            Ok((ran, outcome)) => (ran, outcome),
            Err(error) => {
                eprintln!("error: {error:#}");
                (false, Outcome::default())
            }
        };
        let succeeded = ran && outcome.failed == 0;
        if !succeeded && outcome.failed == 0 {
            // A step that fails without saying how often has failed once.
            outcome.failed = 1;
        }
        total.passed += outcome.passed;
        total.failed += outcome.failed;
        summary.push((step, succeeded, outcome, before.elapsed()));
    }
    println!("\n=== summary");
    for (step, succeeded, outcome, elapsed) in &summary {
        let verdict = if *succeeded { "ok" } else { "FAILED" };
        let counts = match outcome {
            Outcome { passed: 0, failed: 0 } => String::new(),
            Outcome { passed, failed } => format!("{passed} passed, {failed} failed"),
        };
        println!("{:<10} {verdict:<8} {:>7.1} s  {counts}", step.name(), elapsed.as_secs_f64());
    }
    let failed: Vec<&str> = summary.iter().filter(|it| !it.1).map(|it| it.0.name()).collect();
    println!("{:<10} {:>16.1} s", "all", started.elapsed().as_secs_f64());
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(failed.is_empty())
}

/// Runs a step; returns whether its commands succeeded, and what they counted.
fn run(step: Step, options: &Options, state: &State) -> Result<(bool, Outcome)> {
    match step {
        Step::Format => commands([with(provision::cargo(), "fmt --all --check")]),
        Step::Lint => {
            let (tree, _) = install::postgresql(state, Purpose::PgrxTest)?;
            commands([
                with(
                    provision::cargo(),
                    "clippy -p drift_pg --no-default-features --all-targets -- -D warnings",
                ),
                with(provision::cargo(), "clippy -p harness --all-targets -- -D warnings"),
                with(
                    tree.cargo(),
                    "clippy -p drift_pg --features pg15,pg_test --all-targets -- -D warnings",
                ),
            ])
        }
        Step::Unit => {
            commands([with(provision::cargo(), "test -p drift_pg --no-default-features --lib")])
        }
        Step::PgTest => {
            let (tree, _) = install::postgresql(state, Purpose::PgrxTest)?;
            commands([pgrx_test(state, &tree)?])
        }
        Step::Install => {
            install::all(state)?;
            Ok((true, Outcome::default()))
        }
        Step::Regress => {
            install::all(state)?;
            Ok((true, regress::run(state, options.accept)?))
        }
        Step::Scenario => {
            install::all(state)?;
            provision::python()?;
            let mut command = with(provision::cargo(), "test -p harness --no-fail-fast");
            command.env("DRIFT_STATE", state.path(""));
            if options.soak {
                command.env("DRIFT_SOAK", "1");
            }
            commands([command])
        }
    }
}

fn with(mut command: Command, arguments: &str) -> Command {
    command.args(arguments.split(' '));
    command
}

/// Runs the commands one after the other, to the first that fails, shows what they print, and adds
/// up their `test result:` lines.
fn commands(commands: impl IntoIterator<Item = Command>) -> Result<(bool, Outcome)> {
    let mut outcome = Outcome::default();
    for mut command in commands {
        println!("$ {}", display(&command));
        if stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        let succeeded = lines(&mut command, |line| {
            println!("{line}");
            if let Some((passed, failed)) = counts(line) {
                outcome.passed += passed;
                outcome.failed += failed;
            }
        })?;
        if !succeeded {
            return Ok((false, outcome));
        }
    }
    Ok((true, outcome))
}

/// What a line like `test result: ok. 3 passed; 0 failed; ...` counts.
fn counts(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = rest.split("; ").map(|part| part.split_once(' '));
    let (passed, failed) = (numbers.next()??, numbers.next()??);
    (passed.1 == "passed" && failed.1.starts_with("failed"))
        .then(|| Some((passed.0.parse().ok()?, failed.0.parse().ok()?)))?
}

/// `cargo pgrx test`. Its server cannot run as root: there it runs as the servers' user, through
/// what pgrx takes for sudo.
fn pgrx_test(state: &State, tree: &Tree) -> Result<Command> {
    let mut command = with(tree.cargo(), "pgrx test --package drift_pg");
    // The server's socket goes there too, and the whole name of a socket may have 107 bytes.
    let data = state.socket_dir()?.join("pg-test");
    command.arg("--pgdata").arg(state.server_dir(data)?);
    if user::is_root() {
        let bin = state.dir("sudo")?;
        become_user(&bin.join("sudo"))?;
        command.args(["--runas", &state.user().name]);
        let path = command.get_envs().find(|(name, _)| *name == "PATH").and_then(|it| it.1);
        let mut found = OsString::from(&bin);
        found.push(":");
        found.push(path.map(OsString::from).or(std::env::var_os("PATH")).unwrap_or_default());
        command.env("PATH", found);
    }
    if std::env::var_os("RUSTFLAGS").is_none() {
        // For the extension alone pgrx has a linker's flag in a configuration of lower rank, with
        // which cargo would compile all dependencies a second time.
        command.env("RUSTFLAGS", "");
    }
    command.arg("pg15");
    Ok(command)
}

/// Writes the program that stands in for sudo: root needs none to become another user, and a
/// machine may have none.
fn become_user(path: &Path) -> Result<()> {
    let script = r#"#!/bin/sh
if [ "$1" = "-u" ]; then
    user=$2
    shift 2
    exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups env HOME=/tmp "$@"
fi
exec env "$@"
"#;
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 6 passed; 1 failed; 0 ignored; 0 measured";
        assert_eq!(counts(line), Some((6, 1)));
        assert_eq!(counts("test result: ok. 12 passed; 0 failed"), Some((12, 0)));
        assert_eq!(counts("test a ... ok"), None);
        assert_eq!(counts("test result: ok. x passed; 0 failed"), None);
    }

    #[test]
    fn the_command_line_is_read() {
        let read = |words: &str| options(words.split_whitespace().map(str::to_owned));
        assert!(read("").unwrap().unwrap().steps.len() == Step::ALL.len());
        let some = read("--only unit --only lint --soak").unwrap().unwrap();
        assert!(some.steps == [Step::Unit, Step::Lint] && some.soak && !some.accept);
        assert!(read("--only nothing").is_err() && read("--fast").is_err());
        assert!(read("--help").unwrap().is_none());
    }
}
