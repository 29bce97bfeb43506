//! Which of many numbers are the lowest.

use super::super::{scalar, LEAST_OF};
use super::LANES;
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn count_up_to(values: &[f32], high: f32) -> usize {
    scalar::count_up_to_body(values, high)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn up_to(values: &[f32], high: f32, places: &mut Vec<u32>) {
    let bound = _mm512_set1_ps(high);
    let (runs, rest) = values.as_chunks::<LANES>();
    let mut first = 0;
    for run in runs {
        // SAFETY: a run has LANES elements.
        let run = unsafe { _mm512_loadu_ps(run.as_ptr()) };
        let mut low = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(run, bound);
        while low != 0 {
            places.push(first + low.trailing_zeros());
            low &= low - 1;
        }
        first += LANES as u32;
    }
    scalar::up_to_body(rest, high, first, places);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn least_of_runs(values: &[f32], least: &mut [f32]) {
    let (runs, rest) = values.as_chunks::<LEAST_OF>();
    let count = runs.len().min(least.len());
    let (of_runs, of_rest) = least.split_at_mut(count);
    for (run, least) in runs.iter().zip(of_runs) {
        // SAFETY: a run has LANES = LEAST_OF elements.
        let run = unsafe { _mm512_loadu_ps(run.as_ptr()) };
        let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(run, run);
        *least = _mm512_mask_reduce_min_ps(number, run);
    }
    scalar::least_of_runs_body(rest, of_rest);
}
