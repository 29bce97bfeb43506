//! Vector files.

use std::error::Error;
use std::path::Path;

use drift_pg::metric::Metric;
use drift_pg::simd::kernels;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Row-major vectors.
pub struct Rows {
    pub dim: usize,
    pub values: Vec<f32>,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dim..][..self.dim]
    }

    pub fn normalize(&mut self) {
        for row in self.values.chunks_exact_mut(self.dim) {
            let length = (kernels().inner_product)(row, row).sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
}

/// The metric of that name.
pub fn metric(name: &str) -> Result<Metric> {
    match name {
        "l2" => Ok(Metric::L2),
        "ip" => Ok(Metric::InnerProduct),
        "cosine" => Ok(Metric::Cosine),
        "l1" => Ok(Metric::L1),
        other => Err(format!("unknown metric {other}").into()),
    }
}

/// The vectors of a file: `.bvecs`, or else `.fvecs`.
pub fn read_vectors(path: &str) -> Result<Rows> {
    let bytes = Path::new(path).extension().is_some_and(|e| e == "bvecs");
    let (dim, records) = read_records(path, if bytes { 1 } else { 4 })?;
    let values = records.iter().flat_map(|record| -> Vec<f32> {
        if bytes {
            record.iter().map(|&x| f32::from(x)).collect()
        } else {
            record.chunks_exact(4).map(|x| f32::from_bits(little_endian(x))).collect()
        }
    });
    Ok(Rows { dim, values: values.collect() })
}

/// The records of a vecs file, each a count followed by that many elements.
pub fn read_records(path: &str, element: usize) -> Result<(usize, Vec<Vec<u8>>)> {
    let content = std::fs::read(path)?;
    let dim = little_endian(content.get(..4).ok_or("empty file")?) as usize;
    let record = 4 + dim * element;
    if dim == 0 || content.len() % record != 0 {
        return Err(format!("{path} does not consist of records of {dim} elements").into());
    }
    Ok((dim, content.chunks_exact(record).map(|r| r[4..].to_vec()).collect()))
}

pub fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}
