//! Plain arithmetic, compiled for each [`Level`](super::Level).

/// Defines functions that run a body as it is compiled for the instructions of
/// [`kernels`](super::kernels): arithmetic that the compiler makes vectors of by itself. The body,
/// and what it calls, have to be `#[inline(always)]`. Results are the same at every level.
///
/// ```ignore
/// vectorised! {
///     /// The sum of the values.
///     fn sum(values: &[i32]) -> i32 = sum_body;
/// }
/// ```
macro_rules! vectorised {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $body:path;
    )+) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "as many as the body has")]
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments, reason = "as many as the body has")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments, reason = "as many as the body has")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                $body($($arg),*)
            }
            match $crate::simd::kernels().level {
                // SAFETY: a level is only chosen where the processor has its instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    )+};
}

pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    vectorised! {
        fn squares(values: &[f32], out: &mut Vec<f32>) -> f32 = squares_body;
    }

    #[inline(always)]
    fn squares_body(values: &[f32], out: &mut Vec<f32>) -> f32 {
        out.extend(values.iter().map(|x| x * x + 0.1));
        let mut lanes = [0.0f32; 8];
        for run in out.as_chunks::<8>().0 {
            lanes.iter_mut().zip(run).for_each(|(lane, x)| *lane = *lane * 0.9 + x);
        }
        lanes.iter().sum()
    }

    #[test]
    fn results_are_those_of_the_body_to_the_last_bit() {
        let mut rng = SmallRng::seed_from_u64(1);
        for len in [0, 1, 7, 64, 1000] {
            let values: Vec<f32> = (0..len).map(|_| rng.random_range(-9.0..9.0)).collect();
            let (mut one, mut other) = (Vec::new(), Vec::new());
            let sums = [squares(&values, &mut one), squares_body(&values, &mut other)];
            assert_eq!(sums[0].to_bits(), sums[1].to_bits());
            assert_eq!(one, other);
        }
    }
}
