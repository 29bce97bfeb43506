//! Tests of k-means.

use super::*;

static STOP: AtomicBool = AtomicBool::new(false);

fn params(clusters: usize) -> Params {
    Params { clusters, iterations: 15, seed: 7, spherical: false }
}

/// `count` rows around each centre, row-major, the centres taking turns.
fn blobs(centres: &[f32], dim: usize, count: usize, spread: f32) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut rows = Vec::new();
    for _ in 0..count {
        rows.extend(centres.iter().map(|x| x + rng.random_range(-spread..spread)));
    }
    assert_eq!(rows.len() % dim, 0);
    rows
}

fn random(rows: usize, dim: usize) -> Vec<f32> {
    blobs(&vec![0.0; dim], dim, rows, 1.0)
}

fn objective(samples: &[f32], dim: usize, centroids: &[f32]) -> f64 {
    let mut nearest = vec![0; samples.len() / dim];
    super::super::assign::nearest(samples, dim, centroids, &mut nearest, &STOP).unwrap();
    let distance = kernels().l2_squared;
    samples
        .chunks(dim)
        .zip(nearest)
        .map(|(row, c)| f64::from(distance(row, &centroids[c as usize * dim..][..dim])))
        .sum()
}

fn populations(samples: &[f32], dim: usize, centroids: &[f32]) -> Vec<usize> {
    let clusters = centroids.len() / dim;
    let mut nearest = vec![0; samples.len() / dim];
    super::super::assign::nearest(samples, dim, centroids, &mut nearest, &STOP).unwrap();
    let members = Members::new(&nearest, clusters);
    (0..clusters).map(|c| members.of(c).len()).collect()
}

#[test]
fn separated_blobs_are_recovered() {
    for (blob_count, dim, rows) in [(2, 1, 50), (10, 3, 100), (400, 8, 40)] {
        let mut rng = StdRng::seed_from_u64(3);
        let centres: Vec<f32> =
            (0..blob_count * dim).map(|i| (i / dim * 40) as f32 + rng.random::<f32>()).collect();
        let samples = blobs(&centres, dim, rows, 1.0);
        let found = train(&samples, dim, &params(blob_count), &STOP).unwrap();
        assert_eq!(found.len(), centres.len());
        let near = centres.chunks(dim).filter(|centre| {
            found.chunks(dim).any(|c| c.iter().zip(*centre).all(|(x, y)| (x - y).abs() < 1.0))
        });
        // Seeds may leave two blobs together where there are very many.
        let recovered = near.count();
        assert!(recovered * 100 >= blob_count * 95, "{recovered} of {blob_count}");
    }
}

#[test]
fn two_levels_come_close_to_one() {
    let (dim, clusters) = (16, 300);
    let samples = random(20_000, dim);
    let one = train_flat(&samples, dim, &params(clusters), &STOP).unwrap();
    let two = train_two_levels(&samples, dim, &params(clusters), &STOP).unwrap();
    assert_eq!((one.len(), two.len()), (clusters * dim, clusters * dim));
    let (one, two) = (objective(&samples, dim, &one), objective(&samples, dim, &two));
    assert!(two < 1.03 * one, "{two} to {one}");
}

#[test]
fn iterations_improve_on_the_seeds() {
    let samples = random(3000, 8);
    let after = |iterations| {
        let params = Params { iterations, ..params(50) };
        objective(&samples, 8, &train(&samples, 8, &params, &STOP).unwrap())
    };
    assert!(after(15) < 0.9 * after(0));
}

#[test]
fn empty_clusters_are_filled() {
    let samples = blobs(&[0.0, 0.0, 50.0, 50.0], 2, 100, 1.0);
    // Two centroids that nothing is near to, and one that has everything.
    let mut centroids = vec![25.0, 25.0, 1e6, 1e6, -1e6, -1e6];
    let mut rng = StdRng::seed_from_u64(5);
    lloyd(&samples, 2, &params(3), 15, &mut centroids, &mut rng, &STOP).unwrap();
    assert_eq!(centroids.len(), 6);
    assert!(populations(&samples, 2, &centroids).iter().all(|&n| n > 0));
    assert!(objective(&samples, 2, &centroids) < 200.0 * 2.0);
}

#[test]
fn empty_clusters_that_cannot_be_filled_go() {
    let samples = [4.0f32, 2.0].repeat(30);
    let mut centroids = vec![4.0, 2.0, 1e6, 1e6, 0.0, 0.0];
    let mut rng = StdRng::seed_from_u64(5);
    lloyd(&samples, 2, &params(3), 15, &mut centroids, &mut rng, &STOP).unwrap();
    assert_eq!(centroids, [4.0, 2.0]);
}

#[test]
fn a_seed_gives_the_same_whatever_the_threads() {
    let samples = random(8000, 12);
    let with_threads = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let params = Params { seed, ..params(300) };
        pool.install(|| train(&samples, 12, &params, &STOP).unwrap())
    };
    let one = with_threads(1, 7);
    assert_eq!(one, with_threads(4, 7));
    assert_ne!(one, with_threads(1, 8));
}

#[test]
fn a_raised_flag_stops_the_training() {
    let samples = random(3000, 4);
    for clusters in [5, 500] {
        let stop = AtomicBool::new(true);
        assert_eq!(train(&samples, 4, &params(clusters), &stop), Err(Stopped));
    }
}

#[test]
fn fewer_distinct_samples_give_fewer_clusters() {
    assert_eq!(train(&[], 3, &params(5), &STOP).unwrap(), [0f32; 0]);
    assert_eq!(train(&[1.0, 2.0], 2, &params(5), &STOP).unwrap(), [1.0, 2.0]);
    assert_eq!(train(&[1.0, 2.0], 2, &params(0), &STOP).unwrap(), [0f32; 0]);
    for clusters in [5, 1000] {
        assert_eq!(train(&[3.0; 4000], 2, &params(clusters), &STOP).unwrap(), [3.0, 3.0]);
    }
    let mut three = train(&[1.0, 2.0, 9.0].repeat(500), 1, &params(600), &STOP).unwrap();
    three.sort_by(f32::total_cmp);
    assert_eq!(three, [1.0, 2.0, 9.0]);
}

#[test]
fn many_components_can_be_clustered() {
    let dim = 16_000;
    let mut centres = vec![0.0; 2 * dim];
    centres[dim..].fill(1.0);
    let samples = blobs(&centres, dim, 10, 0.5);
    let found = train(&samples, dim, &params(2), &STOP).unwrap();
    assert_eq!(populations(&samples, dim, &found), [10, 10]);
}

#[test]
fn values_without_a_square_do_no_harm() {
    let mut samples = random(2000, 2);
    for (i, x) in samples.iter_mut().enumerate().filter(|(i, _)| i % 97 == 0) {
        *x = [f32::INFINITY, f32::NEG_INFINITY, 3e38][i % 3];
    }
    for clusters in [1, 10, 400] {
        let found = train(&samples, 2, &params(clusters), &STOP).unwrap();
        assert!(found.len() <= 2 * clusters);
    }
}

#[test]
fn spherical_centroids_have_unit_length() {
    let mut samples = random(4000, 6);
    samples.chunks_exact_mut(6).for_each(normalize);
    for clusters in [20, 400] {
        let params = Params { spherical: true, ..params(clusters) };
        let found = train(&samples, 6, &params, &STOP).unwrap();
        assert_eq!(found.len(), 6 * clusters);
        for centroid in found.chunks(6) {
            let length: f32 = centroid.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }
}

#[test]
fn shares_add_up_and_follow_the_populations() {
    assert_eq!(share_out(10, &[50, 30, 20]), [5, 3, 2]);
    assert_eq!(share_out(4, &[1000, 1, 1, 0]), [2, 1, 1, 0]);
    assert_eq!(share_out(7, &[2, 100, 1]).iter().sum::<usize>(), 7);
    assert_eq!(share_out(103, &[2, 100, 1]), [2, 100, 1]);
    assert_eq!(share_out(3, &[5, 0, 0]), [3, 0, 0]);
}
