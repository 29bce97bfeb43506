//! Which of many numbers are the lowest.

use super::super::{scalar, LEAST_OF};
use super::LANES;
use std::arch::x86_64::*;

/// Runs of values that there is made room for at once.
const RUNS_AT_A_TIME: usize = 64;

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn count_up_to(values: &[f32], high: f32) -> usize {
    scalar::count_up_to_body(values, high)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn up_to(values: &[f32], high: f32, places: &mut Vec<u32>) {
    let bound = _mm512_set1_ps(high);
    let mut numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let (runs, rest) = values.as_chunks::<LANES>();
    // Without branches: where low values are is not to be foreseen.
    for some in runs.chunks(RUNS_AT_A_TIME) {
        places.reserve(some.len() * LANES);
        let mut count = places.len();
        for run in some {
            // SAFETY: a run has LANES elements. There is room for as many places of each run, of
            // which the first `count` have been written when the length is set.
            unsafe {
                let low = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_loadu_ps(run.as_ptr()), bound);
                let found = _mm512_maskz_compress_epi32(low, numbers);
                _mm512_storeu_epi32(places.as_mut_ptr().add(count).cast(), found);
                count += low.count_ones() as usize;
            }
            numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(LANES as i32));
        }
        // SAFETY: as above.
        unsafe { places.set_len(count) };
    }
    scalar::up_to_body(rest, high, (runs.len() * LANES) as u32, places);
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
