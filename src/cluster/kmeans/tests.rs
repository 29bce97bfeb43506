use super::super::assign::nearest;
use super::*;

static GO: AtomicBool = AtomicBool::new(false);

fn params(clusters: usize) -> Params {
    Params { clusters, iterations: 20, seed: 42, spherical: false }
}

/// `each` samples around each of `middles`, in turn.
fn blobs(middles: &[f32], dim: usize, each: usize, spread: f32) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut samples = Vec::new();
    for _ in 0..each {
        samples.extend(middles.iter().map(|x| x + rng.random_range(-spread..spread)));
    }
    assert_eq!(samples.len() % dim, 0);
    samples
}

fn random(count: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(3);
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// Mean squared distance of samples to their nearest centroids.
fn error(samples: &[f32], dim: usize, centroids: &[f32]) -> f64 {
    let mut found = vec![0; samples.len() / dim];
    nearest(samples, dim, centroids, &mut found, &GO).unwrap();
    let distance = |(row, found): (&[f32], &u32)| {
        f64::from((kernels().l2_squared)(row, &centroids[*found as usize * dim..][..dim]))
    };
    samples.chunks_exact(dim).zip(&found).map(distance).sum::<f64>() / found.len() as f64
}

#[test]
fn separated_blobs_are_recovered() {
    let dim = 8;
    let middles: Vec<f32> = random(20 * dim).iter().map(|x| x * 100.0).collect();
    let samples = blobs(&middles, dim, 50, 1.0);
    let centroids = train(&samples, dim, &params(20), &GO).unwrap();
    assert_eq!(centroids.len(), middles.len());
    assert!(error(&middles, dim, &centroids) < 0.5);
    assert!(error(&samples, dim, &centroids) < 4.0);
}

#[test]
fn the_hierarchy_is_nearly_as_good_as_one_level() {
    let dim = 6;
    let samples = random(20_000 * dim);
    let trainer = Trainer { dim, iterations: 10, spherical: false, stop: &GO };
    let flat = trainer.flat(&samples, 400, &mut StdRng::seed_from_u64(1)).unwrap();
    let params = Params { iterations: 10, ..params(400) };
    let divided = train(&samples, dim, &params, &GO).unwrap();
    assert_eq!(divided.len(), 400 * dim);
    let (flat, divided) = (error(&samples, dim, &flat), error(&samples, dim, &divided));
    assert!(divided < 1.05 * flat, "{divided} instead of {flat}");
}

#[test]
fn an_empty_cluster_divides_the_worst_one() {
    let samples = [0.0f32, 0.1, 10.0, 10.1, 20.0, 20.1];
    let trainer = Trainer { dim: 1, iterations: 10, spherical: false, stop: &GO };
    // Nothing is near the third.
    let seeds = vec![0.0, 15.0, 1000.0];
    let mut centroids =
        trainer.iterate(&samples, seeds, 10, &mut StdRng::seed_from_u64(1)).unwrap();
    centroids.sort_unstable_by(f32::total_cmp);
    assert_eq!(centroids.len(), 3);
    for (found, wanted) in centroids.iter().zip([0.05, 10.05, 20.05]) {
        assert!((found - wanted).abs() < 1e-4, "{centroids:?}");
    }
}

#[test]
fn the_last_iteration_leaves_no_empty_cluster() {
    let trainer = Trainer { dim: 1, iterations: 1, spherical: false, stop: &GO };
    let seeds = vec![0.0, 1000.0];
    let found = trainer.iterate(&[1.0, 2.0], seeds, 1, &mut StdRng::seed_from_u64(1)).unwrap();
    assert_eq!(found, [1.5]);
}

#[test]
fn a_stop_is_obeyed() {
    let samples = random(4000);
    assert_eq!(train(&samples, 4, &params(300), &AtomicBool::new(true)), Err(Stopped));
    let stop = AtomicBool::new(false);
    let samples = random(100_000 * 64);
    let long = Params { iterations: 100_000, ..params(2_000) };
    let stopped = std::thread::scope(|scope| {
        let training = scope.spawn(|| train(&samples, 64, &long, &stop));
        std::thread::sleep(std::time::Duration::from_millis(30));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        training.join().unwrap()
    });
    assert_eq!(stopped, Err(Stopped));
}

#[test]
fn threads_do_not_change_the_result() {
    let dim = 5;
    let samples = random(12_000 * dim);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train(&samples, dim, &params(1_200), &GO).unwrap())
    };
    let one = on(1);
    assert_eq!(one.len(), 1_200 * dim);
    assert!(one == on(2));
    assert!(one == on(3));
}

#[test]
fn another_seed_is_another_result() {
    let samples = random(4_000);
    let other = Params { seed: 43, ..params(10) };
    assert_ne!(
        train(&samples, 4, &params(10), &GO).unwrap(),
        train(&samples, 4, &other, &GO).unwrap()
    );
}

#[test]
fn spherical_centroids_have_length_one() {
    let dim = 3;
    let mut samples = random(3_000 * dim);
    for sample in samples.chunks_exact_mut(dim) {
        let length = sample.iter().map(|x| x * x).sum::<f32>().sqrt();
        sample.iter_mut().for_each(|x| *x /= length);
    }
    samples.extend([0.0; 3]);
    for clusters in [5, 300] {
        let params = Params { spherical: true, ..params(clusters) };
        let centroids = train(&samples, dim, &params, &GO).unwrap();
        assert_eq!(centroids.len(), clusters * dim);
        for centroid in centroids.chunks_exact(dim) {
            let length = centroid.iter().map(|x| x * x).sum::<f32>();
            assert!((length - 1.0).abs() < 1e-5, "{centroid:?}");
        }
    }
}

#[test]
fn no_sample_is_one_zero_centroid() {
    assert_eq!(train(&[], 3, &params(5), &GO).unwrap(), [0.0; 3]);
    assert_eq!(train(&[f32::NAN, 1.0], 2, &params(5), &GO).unwrap(), [0.0; 2]);
    let spherical = Params { spherical: true, ..params(5) };
    assert_eq!(train(&[0.0; 6], 2, &spherical, &GO).unwrap(), [0.0; 2]);
}

#[test]
fn fewer_distinct_samples_are_fewer_clusters() {
    assert_eq!(train(&[2.5; 4_000], 2, &params(700), &GO).unwrap(), [2.5; 2]);
    assert_eq!(train(&[3.0, 4.0], 2, &params(9), &GO).unwrap(), [3.0, 4.0]);
    let samples: Vec<f32> = (0..2_000).map(|nth| (nth % 4) as f32).collect();
    let mut centroids = train(&samples, 1, &params(300), &GO).unwrap();
    centroids.sort_unstable_by(f32::total_cmp);
    assert_eq!(centroids, [0.0, 1.0, 2.0, 3.0]);
    // None wanted, one had.
    assert_eq!(train(&[1.0, 3.0], 1, &params(0), &GO).unwrap(), [2.0]);
}

#[test]
fn samples_that_are_not_finite_have_no_say() {
    let samples = [1.0, f32::INFINITY, 1.0, 1.0, f32::NAN, 0.0, 3.0, 3.0, f32::NEG_INFINITY, 2.0];
    assert_eq!(train(&samples, 2, &params(1), &GO).unwrap(), [2.0, 2.0]);
}

#[test]
fn extreme_magnitudes_are_told_apart() {
    for scale in [1e-38f32, 1e-20, 1e20, 1e38] {
        let samples: Vec<f32> =
            (0..400).map(|nth| scale * [1.0, 1.01, -2.0, -2.01][nth % 4]).collect();
        let mut centroids = train(&samples, 1, &params(2), &GO).unwrap();
        centroids.sort_unstable_by(f32::total_cmp);
        assert_eq!(centroids.len(), 2);
        for (found, wanted) in centroids.iter().zip([-2.005, 1.005]) {
            assert!((found / scale - wanted).abs() < 1e-3, "{centroids:?}");
        }
    }
}

#[test]
fn many_dimensions_and_many_clusters_of_one() {
    let samples = random(40 * 16_000);
    let centroids = train(&samples, 16_000, &params(40), &GO).unwrap();
    assert!(centroids.len() / 16_000 > 30);
    let samples = random(5_000);
    let centroids = train(&samples, 1, &params(3_000), &GO).unwrap();
    assert!((2_000..=3_000).contains(&centroids.len()), "{}", centroids.len());
}

#[test]
fn seats_follow_populations() {
    assert_eq!(apportion(10, &[90, 10, 0, 100]), [4, 1, 0, 5]);
    assert_eq!(apportion(10, &[2, 1, 1]), [2, 1, 1]);
    assert_eq!(apportion(3, &[1_000_000, 1, 1]), [1, 1, 1]);
}
