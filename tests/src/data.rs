//! Data: the bundled word vectors, and the files larger sets come in.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::state;

const MAGIC: &[u8; 8] = b"WORDVEC1";

/// Words and their embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// The words, the most frequent first.
    pub words: Vec<String>,
    /// One vector a word.
    pub vectors: Vec<Vec<f32>>,
}

impl Words {
    /// The bundled ones: 20,000 English words, 100 dimensions (`tests/data/README.md`).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bundled() -> Result<Words> {
        let path = state::workspace().join("tests/data/words20k.bin");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Words::unpack(&bytes).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Reads lines of the form `word<TAB>[1,2.5,...]`.
    ///
    /// # Errors
    /// A line has another form, or vectors differ in length.
    pub fn parse(text: &str) -> Result<Words> {
        let (mut words, mut vectors) = (Vec::new(), Vec::<Vec<f32>>::new());
        for (number, line) in text.lines().enumerate() {
            let vector = || {
                let (word, vector) = line.split_once('\t')?;
                let elements = vector.strip_prefix('[')?.strip_suffix(']')?.split(',');
                let elements: Option<Vec<f32>> =
                    elements.map(|it| it.trim().parse().ok()).collect();
                Some((word.to_owned(), elements?))
            };
            let (word, vector) =
                vector().with_context(|| format!("line {}: not word<TAB>[...]", number + 1))?;
            let first = vectors.first().unwrap_or(&vector).len();
            ensure!(vector.len() == first, "line {}: {} dimensions", number + 1, vector.len());
            words.push(word);
            vectors.push(vector);
        }
        Ok(Words { words, vectors })
    }

    /// The compact form: each vector as int8 multiples of a 127th of its largest element.
    pub fn pack(&self) -> Vec<u8> {
        let dimensions = self.vectors.first().map_or(0, Vec::len);
        let mut bytes = MAGIC.to_vec();
        bytes.extend((self.words.len() as u32).to_le_bytes());
        bytes.extend((dimensions as u32).to_le_bytes());
        for vector in &self.vectors {
            let largest = vector.iter().fold(0.0_f32, |largest, it| largest.max(it.abs()));
            let unit = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            bytes.extend(unit.to_le_bytes());
            bytes.extend(vector.iter().map(|it| (it / unit).round() as i8 as u8));
        }
        for word in &self.words {
            bytes.extend(word.as_bytes());
            bytes.push(b'\n');
        }
        bytes
    }

    /// Reads the compact form.
    ///
    /// # Errors
    /// The bytes are not of that form.
    pub fn unpack(bytes: &[u8]) -> Result<Words> {
        let rest = bytes.strip_prefix(MAGIC).context("not a file of word vectors")?;
        let (rows, rest) = rest.split_first_chunk().context("no number of rows")?;
        let (dimensions, rest) = rest.split_first_chunk().context("no dimensions")?;
        let rows = u32::from_le_bytes(*rows) as usize;
        let dimensions = u32::from_le_bytes(*dimensions) as usize;
        let width = 4 + dimensions;
        let length = rows.checked_mul(width).context("too many rows")?;
        let (packed, text) = rest.split_at_checked(length).context("fewer rows than it says")?;
        let vectors = packed
            .chunks_exact(width)
            .map(|row| {
                let (unit, codes) = row.split_first_chunk().context("a row without a unit")?;
                let unit = f32::from_le_bytes(*unit);
                Ok(codes.iter().map(|&code| f32::from(code as i8) * unit).collect())
            })
            .collect::<Result<Vec<_>>>()?;
        let text = std::str::from_utf8(text)?;
        ensure!(rows == 0 || text.ends_with('\n'), "the last word is cut off");
        let words: Vec<String> = text.lines().map(str::to_owned).collect();
        ensure!(words.len() == rows, "{} words for {rows} vectors", words.len());
        Ok(Words { words, vectors })
    }
}

/// Gives each row of a file to `row`: an int32 dimension count and that many elements of `width`
/// bytes, little-endian.
///
/// # Errors
/// The file cannot be read or ends within a row, or `row` fails: the error names file and row.
pub(crate) fn each_row(
    path: &Path,
    width: usize,
    mut row: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rest = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut bytes = Vec::new();
    let mut number = 0_u64;
    while rest > 0 {
        let mut next = || {
            let mut count = [0; 4];
            file.read_exact(&mut count).context("cut off")?;
            let count = usize::try_from(i32::from_le_bytes(count)).context("not a row")?;
            let length = count.checked_mul(width).context("not a row")?;
            // A damaged count must not make this allocate what the file cannot hold.
            rest = rest.checked_sub(4 + length as u64).context("cut off")?;
            bytes.resize(length, 0);
            file.read_exact(&mut bytes).context("cut off")?;
            row(&bytes)
        };
        next().with_context(|| format!("{}: row {number}", path.display()))?;
        number += 1;
    }
    Ok(())
}

fn rows<T>(path: &Path, width: usize, element: impl Fn(&[u8]) -> T) -> Result<Vec<Vec<T>>> {
    let mut rows = Vec::new();
    each_row(path, width, |row| {
        rows.push(row.chunks_exact(width).map(&element).collect());
        Ok(())
    })?;
    Ok(rows)
}

fn word(bytes: &[u8]) -> [u8; 4] {
    let mut word = [0; 4];
    word.copy_from_slice(bytes);
    word
}

/// Reads vectors of f32.
///
/// # Errors
/// The file cannot be read, or ends within a row.
pub fn fvecs(path: &Path) -> Result<Vec<Vec<f32>>> {
    rows(path, 4, |bytes| f32::from_le_bytes(word(bytes)))
}

/// Reads vectors of bytes, as f32.
///
/// # Errors
/// As [`fvecs`].
pub fn bvecs(path: &Path) -> Result<Vec<Vec<f32>>> {
    rows(path, 1, |bytes| f32::from(bytes[0]))
}

/// Reads row numbers: the exact answers to queries.
///
/// # Errors
/// As [`fvecs`].
pub fn ivecs(path: &Path) -> Result<Vec<Vec<i32>>> {
    rows(path, 4, |bytes| i32::from_le_bytes(word(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_words_and_nearly_their_vectors() {
        let words = Words::parse("the\t[1,-0.5,0.25]\nna\u{ef}ve\t[0,0,0]\n").unwrap();
        let bytes = words.pack();
        let back = Words::unpack(&bytes).unwrap();
        assert_eq!(back.words, ["the", "na\u{ef}ve"]);
        for (a, b) in words.vectors.iter().flatten().zip(back.vectors.iter().flatten()) {
            assert!((a - b).abs() <= 0.5 / 127.0, "{a} {b}");
        }
        assert!((0..bytes.len()).all(|length| Words::unpack(&bytes[..length]).is_err()));
        assert!(Words::parse("a\t[1,2]\nb\t[1]").is_err());
        assert!(Words::parse("a [1,2]").is_err());
    }

    #[test]
    fn the_bundled_words_are_whole() {
        let words = Words::bundled().unwrap();
        assert_eq!((words.words.len(), words.vectors.len()), (20_000, 20_000));
        assert!(words.vectors.iter().all(|it| it.len() == 100 && it.iter().any(|&e| e != 0.0)));
        assert_eq!(words.words[0], "the");
    }

    #[test]
    fn files_of_vectors_are_read_row_by_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vectors");
        fs::write(&path, [2, 0, 0, 0, 7, 9, 1, 0, 0, 0, 255]).unwrap();
        assert_eq!(bvecs(&path).unwrap(), [vec![7.0, 9.0], vec![255.0]]);
        assert!(fvecs(&path).is_err());
        fs::write(&path, [1, 0, 0, 0, 0, 0, 128, 63]).unwrap();
        assert_eq!(fvecs(&path).unwrap(), [[1.0]]);
        assert_eq!(ivecs(&path).unwrap(), [[0x3f80_0000]]);
    }
}
