//! Writes the compact form of word vectors: `tests/data/README.md` says when.

use std::fs;

use anyhow::{bail, Context, Result};
use harness::data::Words;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = arguments.as_slice() else {
        bail!("usage: pack_words WORDS.tsv WORDS.bin");
    };
    let text = fs::read_to_string(from).with_context(|| format!("cannot read {from}"))?;
    let words = Words::parse(&text)?;
    fs::write(to, words.pack()).with_context(|| format!("cannot write {to}"))?;
    println!("{to}: {} words", words.words.len());
    Ok(())
}
