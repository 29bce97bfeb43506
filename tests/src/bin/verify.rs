//! Everything that has to hold: run by `cargo verify`.

use harness::install;
use harness::state::State;

fn main() -> anyhow::Result<()> {
    install::all(&State::open()?)?;
    Ok(())
}
