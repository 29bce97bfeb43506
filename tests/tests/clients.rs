//! Clients written for pgvector, unchanged.

use std::fs;
use std::process::Command;

use anyhow::Result;
use harness::cluster::{Cluster, SUPERUSER};
use harness::command::output;
use harness::state::{workspace, State};

/// Makes a virtual environment with the client in it, unless there is one of the same
/// requirements. Returns its Python.
fn python(state: &State) -> Result<std::path::PathBuf> {
    let requirements = workspace().join("tests/clients/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let environment = state.path("py");
    let (python, stamp) = (environment.join("bin/python"), environment.join("requirements.txt"));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    output(command.arg("--requirement").arg(&requirements))?;
    fs::write(stamp, wanted)?;
    Ok(python)
}

#[test]
fn pgvector_for_python() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let python = python(&State::open()?)?;
    let connection =
        format!("host={} user={SUPERUSER} dbname=postgres", cluster.socket_dir().display());
    let script = workspace().join("tests/clients/pgvector_client.py");
    output(Command::new(python).arg(script).arg(connection))?;
    Ok(())
}
