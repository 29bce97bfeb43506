use super::*;
use crate::metric::Metric;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const CHUNK_WORDS: usize = 1 << 13;
const METRICS: [Metric; 4] = [Metric::L2, Metric::InnerProduct, Metric::Cosine, Metric::L1];

struct Memory(Vec<Box<[AtomicU32]>>);

// SAFETY: chunks are zeroed when they are made; tests that change words do so between calls.
unsafe impl Region for Memory {
    fn chunk(&self, nth: u32) -> Option<&[AtomicU32]> {
        self.0.get(nth as usize).map(|chunk| &**chunk)
    }
}

impl Memory {
    fn for_rows(shape: Shape, rows: usize) -> Memory {
        Memory::with_chunks(shape, rows, CHUNK_WORDS)
    }

    fn with_chunks(shape: Shape, rows: usize, words: usize) -> Memory {
        let chunks = shape.chunk_of(rows.max(1) as u32 - 1) + 1;
        let chunk = |_| (0..words).map(|_| AtomicU32::new(0)).collect();
        Memory((0..chunks).map(chunk).collect())
    }
}

/// Rows around some centres, as embeddings lie.
fn clustered(rng: &mut SmallRng, dims: usize, rows: usize) -> Vec<f32> {
    let centres: Vec<f32> = (0..50 * dims).map(|_| rng.random_range(-1.0..1.0)).collect();
    (0..rows)
        .flat_map(|_| {
            let centre = rng.random_range(0..50) * dims;
            let near: Vec<f32> =
                (0..dims).map(|d| centres[centre + d] + rng.random_range(-0.5..0.5f32)).collect();
            near
        })
        .collect()
}

fn nearest(metric: Metric, dims: usize, rows: &[f32], query: &[f32], k: usize) -> Vec<u32> {
    let ranks = rows.chunks_exact(dims).map(|row| Rank::new(metric.rank(query, row)));
    let mut ranks: Vec<(Rank, u32)> = ranks.zip(0..).collect();
    ranks.sort_unstable();
    ranks.into_iter().take(k).map(|(_, row)| row).collect()
}

fn filled<'a>(
    memory: &'a Memory,
    header: &'a Header,
    shape: Shape,
    metric: Metric,
    dims: usize,
    rows: &[f32],
) -> Graph<'a, &'a Memory> {
    let graph = Graph::new(memory, header, shape, metric);
    for (row, vector) in rows.chunks_exact(dims).enumerate() {
        graph.put(row as u32, row as u64 * 7, vector).unwrap();
    }
    graph.encode(u32::MAX).unwrap();
    graph
}

fn recall(metric: Metric, dims: usize, count: usize, effort: usize) -> f64 {
    const K: usize = 10;
    let mut rng = SmallRng::seed_from_u64(dims as u64);
    let all = clustered(&mut rng, dims, count + 50);
    let (rows, queries) = all.split_at(count * dims);
    let shape = Shape::new(dims, CHUNK_WORDS).unwrap();
    let (memory, header) = (Memory::for_rows(shape, count), Header::default());
    let graph = filled(&memory, &header, shape, metric, dims, rows);
    let mut scratch = Scratch::default();
    while graph.link(&mut scratch, 64).unwrap() > 0 {}
    assert_eq!(graph.linked() as usize, count);
    let (mut hits, mut of) = (0, 0);
    for query in queries.chunks_exact(dims) {
        let truth = nearest(metric, dims, rows, query, K);
        let worst = metric.rank(query, &rows[truth[truth.len() - 1] as usize * dims..][..dims]);
        let found = graph.search(&mut scratch, query, count as u32, effort, |_| true).unwrap();
        assert!(found.is_sorted_by(|a, b| a.rank <= b.rank));
        for hit in &found {
            let at = hit.row as usize * dims;
            assert_eq!(hit.rank, metric.rank(query, &rows[at..at + dims]));
            assert_eq!(graph.label(hit.row), Ok(u64::from(hit.row) * 7));
        }
        hits += found.iter().take(K).filter(|hit| hit.rank <= worst).count();
        of += truth.len();
    }
    hits as f64 / of as f64
}

#[test]
fn searches_find_the_nearest_rows() {
    for metric in METRICS {
        for (dims, count) in [(2, 3000), (16, 5000), (100, 3000), (384, 1000), (2000, 200)] {
            let found = recall(metric, dims, count, effort(0.95, count as u32));
            println!("{metric:?} {dims} dimensions, {count} rows: {found}");
            assert!(found >= 0.97, "{metric:?}, {dims} dimensions: {found}");
        }
    }
}

#[test]
fn every_row_is_found_while_there_are_few() {
    for metric in METRICS {
        for dims in [1, 2, 3, 7, 31, 1000, 2000] {
            for count in [1, 2, 5, 17, 40] {
                let found = recall(metric, dims, count, 64);
                // The inner product of one dimension has its nearest rows at the two ends only.
                assert!(
                    found == 1.0 || (dims == 1 && found > 0.8),
                    "{metric:?} {dims} {count}: {found}"
                );
            }
        }
    }
}

#[test]
fn rows_are_published_in_order_however_they_come() {
    let shape = Shape::new(3, CHUNK_WORDS).unwrap();
    let (memory, header) = (Memory::for_rows(shape, 300), Header::default());
    let graph = Graph::new(&memory, &header, shape, Metric::L2);
    for (row, len) in [(1, 0), (3, 0), (0, 2), (2, 4), (4, 5)] {
        graph.put(row, 9, &[row as f32; 3]).unwrap();
        assert_eq!(graph.len(), len, "after row {row}");
    }
    // What is there stays as it is.
    graph.put(2, 8, &[7.0; 3]).unwrap();
    assert_eq!((graph.label(2), graph.vector(2)), (Ok(9), Ok(&[2.0f32; 3][..])));
    assert_eq!(graph.label(5), Err(Corrupt));
    assert_eq!(graph.put(5, 0, &[1.0; 2]), Err(Corrupt), "other dimensions");
    assert_eq!(graph.put(1 << 20, 0, &[1.0; 3]), Err(Corrupt), "no chunk");
    let mut seen = Vec::new();
    graph.scan(&[0.0; 3], 1..5, |hit| seen.push((hit.row, hit.rank))).unwrap();
    assert_eq!(seen, [(1, 3.0), (2, 12.0), (3, 27.0), (4, 48.0)]);
}

#[test]
fn equal_rows_and_odd_numbers_are_no_trouble() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, 1e-40];
    let mut rng = SmallRng::seed_from_u64(5);
    for metric in METRICS {
        let dims = 4;
        let rows: Vec<f32> = (0..2000 * dims)
            .map(|at| match at % (100 * dims) {
                0 => odd[rng.random_range(0..odd.len())],
                _ => 1.0,
            })
            .collect();
        let shape = Shape::new(dims, CHUNK_WORDS).unwrap();
        let (memory, header) = (Memory::for_rows(shape, 2000), Header::default());
        let graph = filled(&memory, &header, shape, metric, dims, &rows);
        let mut scratch = Scratch::default();
        assert_eq!(graph.link(&mut scratch, u32::MAX), Ok(2000));
        let found = graph.search(&mut scratch, &[1.0; 4], 2000, 40, |_| true).unwrap();
        println!("{metric:?}: {} of 40", found.len());
        assert!(found.len() >= 10);
    }
}

#[test]
fn rows_that_do_not_count_are_walked_through() {
    let (dims, count) = (8, 3000);
    let mut rng = SmallRng::seed_from_u64(8);
    let rows = clustered(&mut rng, dims, count);
    let shape = Shape::new(dims, CHUNK_WORDS).unwrap();
    let (memory, header) = (Memory::for_rows(shape, count), Header::default());
    let graph = filled(&memory, &header, shape, Metric::L2, dims, &rows);
    let mut scratch = Scratch::default();
    graph.link(&mut scratch, u32::MAX).unwrap();
    let query = &rows[..dims];
    let found = graph.search(&mut scratch, query, 3000, 50, |row| row % 10 == 3).unwrap();
    assert_eq!(found.len(), 50);
    assert!(found.iter().all(|hit| hit.row % 10 == 3));
    let truth: HashSet<u32> = nearest(Metric::L2, dims, &rows, query, count)
        .into_iter()
        .filter(|row| row % 10 == 3)
        .take(10)
        .collect();
    assert!(found[..10].iter().filter(|hit| truth.contains(&hit.row)).count() >= 9);
    // Only a prefix was linked for this reader.
    let found = graph.search(&mut scratch, query, 2900, 50, |_| true).unwrap();
    assert!(found.len() == 50 && found.iter().all(|hit| hit.row < 2900));
}

#[test]
fn readers_a_writer_and_a_linker_at_once() {
    let (dims, count) = (12, 6000);
    let mut rng = SmallRng::seed_from_u64(12);
    let rows = clustered(&mut rng, dims, count);
    let shape = Shape::new(dims, CHUNK_WORDS).unwrap();
    let (memory, header) = (Memory::for_rows(shape, count), Header::default());
    let graph = || Graph::new(&memory, &header, shape, Metric::L2);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (row, vector) in rows.chunks_exact(dims).enumerate() {
                graph().put(row as u32, row as u64, vector).unwrap();
            }
        });
        scope.spawn(|| {
            let mut scratch = Scratch::default();
            while graph().linked() < count as u32 {
                graph().link(&mut scratch, 5).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        for reader in 0..2 {
            let (rows, done, graph) = (&rows, &done, &graph);
            scope.spawn(move || {
                let mut scratch = Scratch::default();
                let mut rng = SmallRng::seed_from_u64(reader);
                while !done.load(Ordering::Acquire) {
                    let (linked, len) = (graph().linked(), graph().len());
                    if len == 0 {
                        continue;
                    }
                    let wanted = rng.random_range(0..len);
                    let query = &rows[wanted as usize * dims..][..dims];
                    let mut hits =
                        graph().search(&mut scratch, query, linked, 64, |_| true).unwrap();
                    graph().scan(query, linked..len, |hit| hits.push(hit)).unwrap();
                    let rows_hit: HashSet<u32> = hits.iter().map(|hit| hit.row).collect();
                    assert_eq!(rows_hit.len(), hits.len(), "no row twice");
                    assert!(rows_hit.iter().all(|row| *row < len));
                    let missed = !rows_hit.contains(&wanted);
                    assert!(!missed || wanted < linked, "a row of the tail is always found");
                }
            });
        }
    });
    let mut scratch = Scratch::default();
    let own = (0..count).filter(|row| {
        let query = &rows[row * dims..][..dims];
        let found = graph().search(&mut scratch, query, count as u32, 64, |_| true).unwrap();
        found.first().is_some_and(|hit| hit.row == *row as u32)
    });
    assert!(own.count() > count * 98 / 100);
}

#[test]
fn spoilt_memory_is_an_error_or_a_worse_answer_but_no_panic() {
    let (dims, count) = (5, 1200);
    let mut rng = SmallRng::seed_from_u64(77);
    let rows = clustered(&mut rng, dims, count);
    let shape = Shape::new(dims, CHUNK_WORDS).unwrap();
    let mut errors = 0;
    for round in 0..300 {
        let (memory, header) = (Memory::for_rows(shape, count), Header::default());
        let graph = filled(&memory, &header, shape, METRICS[round % 4], dims, &rows);
        let mut scratch = Scratch::default();
        graph.link(&mut scratch, 600).unwrap();
        let words = memory.0.len() * CHUNK_WORDS;
        for _ in 0..rng.random_range(1..2000) {
            let at = rng.random_range(0..words);
            let word = match rng.random_range(0..3) {
                0 => rng.random(),
                1 => rng.random_range(0..2 * count as u32),
                _ => u32::MAX,
            };
            memory.0[at / CHUNK_WORDS][at % CHUNK_WORDS].store(word, Ordering::Relaxed);
        }
        let query = &rows[..dims];
        let linked = graph.link(&mut scratch, 50);
        let searched =
            graph.search(&mut scratch, query, graph.linked(), 50, |row| graph.label(row).is_ok());
        let scanned = graph.scan(query, graph.linked()..graph.len(), |_| {});
        errors += usize::from(linked.is_err()) + usize::from(searched.is_err());
        assert_eq!(scanned, Ok(()), "vectors have no wrong bits");

        // Counts from nowhere: chunks that are not there.
        graph.set_linked(u32::MAX);
        for _ in 0..4 {
            let linked = rng.random();
            let _ = graph.search(&mut scratch, query, linked, 10, |_| true);
            let _ = graph.scan(query, linked..linked.saturating_add(9), |_| {});
            graph.set_linked(linked % (2 * count as u32));
            let _ = graph.link(&mut scratch, 3);
        }
        assert_eq!(graph.label(u32::MAX), Err(Corrupt));
        assert_eq!(graph.vector(u32::MAX), Err(Corrupt));
    }
    assert!(errors > 100, "spoilt links are noticed: {errors}");
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    assert_eq!(Shape::new(0, CHUNK_WORDS), None);
    assert_eq!(Shape::new(CHUNK_WORDS, CHUNK_WORDS), None);
    assert_eq!(Shape::new(usize::MAX, CHUNK_WORDS), None);
    assert_eq!(Shape::new(16_000, 1 << 15).map(|shape| shape.rows_per_chunk()), Some(1));
}

/// Figures: `cargo test --release --no-default-features graph -- --ignored --nocapture`, with
/// `DRIFT_GRAPH_DATA` naming an .fvecs file, else on clustered random rows.
#[test]
#[ignore = "prints figures"]
fn figures() {
    let data = std::env::var_os("DRIFT_GRAPH_DATA").map(std::fs::read).transpose().unwrap();
    let mut rng = SmallRng::seed_from_u64(1);
    let (dims, all) = match data {
        Some(bytes) => {
            let dims = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
            let rows = bytes.chunks_exact(4 + dims * 4).flat_map(|row| {
                row[4..].chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()))
            });
            (dims, rows.collect::<Vec<f32>>())
        }
        None => (128, clustered(&mut rng, 128, 50_500)),
    };
    let metric = Metric::L2;
    let queries = all.len() / dims - 500;
    for count in [5_000, 20_000, 50_000, queries].into_iter().filter(|count| *count <= queries) {
        let rows = &all[..count * dims];
        let shape = Shape::new(dims, 1 << 15).unwrap();
        let memory = Memory(
            (0..=shape.chunk_of(count as u32))
                .map(|_| (0..1 << 15).map(|_| AtomicU32::new(0)).collect())
                .collect(),
        );
        let header = Header::default();
        let start = std::time::Instant::now();
        let graph = filled(&memory, &header, shape, metric, dims, rows);
        let put = start.elapsed();
        let mut scratch = Scratch::default();
        let start = std::time::Instant::now();
        graph.link(&mut scratch, u32::MAX).unwrap();
        let linked = start.elapsed();
        let start = std::time::Instant::now();
        for query in all[queries * dims..].chunks_exact(dims).take(20) {
            let mut best = f64::INFINITY;
            graph.scan(query, 0..count as u32, |hit| best = best.min(hit.rank)).unwrap();
        }
        let scan = start.elapsed() / 20;
        println!(
            "{count} x {dims}: put {:?} a row, link {:?} a row, scan {scan:?}",
            put / count as u32,
            linked / count as u32
        );
        let truth: Vec<HashSet<u32>> = all[queries * dims..]
            .chunks_exact(dims)
            .map(|query| nearest(metric, dims, rows, query, 10).into_iter().collect())
            .collect();
        for ef in [16, 32, 64, 96, 160, 240, 640] {
            let start = std::time::Instant::now();
            let mut hits = 0;
            for (query, truth) in all[queries * dims..].chunks_exact(dims).zip(&truth) {
                let found = graph.search(&mut scratch, query, count as u32, ef, |_| true).unwrap();
                hits += found.iter().take(10).filter(|hit| truth.contains(&hit.row)).count();
            }
            println!(
                "  effort {ef}: recall {:.4}, {:?}",
                hits as f64 / 10.0 / truth.len() as f64,
                start.elapsed() / truth.len() as u32
            );
        }
    }
}

#[test]
fn more_recall_and_more_rows_take_more_effort() {
    let efforts: Vec<usize> = (0..=100).map(|r| effort(f64::from(r) / 100.0, 40_000)).collect();
    assert!(efforts.is_sorted() && efforts[0] < efforts[100]);
    assert!(effort(0.95, 40_000) == 2 * effort(0.95, 10_000));
    assert!(effort(0.5, 1) == effort(0.5, 100) && effort(0.5, 0) > 0);
}

#[test]
fn no_rank_is_below_its_bound() {
    let mut rng = SmallRng::seed_from_u64(8);
    for metric in METRICS {
        for dims in [3, 16, 100, 128] {
            let mut rows = clustered(&mut rng, dims, 700);
            rows[5 * dims] = f32::NAN;
            rows[6 * dims] = f32::MAX;
            rows[7 * dims..8 * dims].fill(0.0);
            let shape = Shape::new(dims, CHUNK_WORDS).unwrap();
            let (memory, header) = (Memory::for_rows(shape, 700), Header::default());
            let graph = filled(&memory, &header, shape, metric, dims, &rows);
            let query = clustered(&mut rng, dims, 1);
            let prepared = Bounding::new(metric, &query, 1.0);
            let mut bounds = Vec::new();
            assert_eq!(graph.coded(), 672, "whole blocks");
            for rows in [0..1, 1..671, 671..672] {
                graph.bounds(&prepared, rows, &mut bounds).unwrap();
            }
            assert_eq!(bounds.len(), 672);
            let scale = if metric == Metric::Cosine { 1.0 } else { dims as f64 };
            let mut near = 0;
            for (row, bound) in (0..).zip(bounds) {
                let rank = graph.rank_of(&query, row).unwrap();
                assert!(rank.is_nan() || f64::from(bound) <= rank, "{metric:?} {dims}: row {row}");
                near += usize::from(rank - f64::from(bound) < 0.1 * scale);
            }
            assert!(near > 575, "{metric:?} {dims}: {near} bounds tell anything");
            assert_eq!(graph.bounds(&prepared, 0..100_000, &mut Vec::new()), Err(Corrupt));
        }
    }
}

#[test]
fn codes_are_the_same_whenever_they_are_made() {
    const ROWS: usize = 300;
    let mut rng = SmallRng::seed_from_u64(10);
    for dims in [16, 128] {
        let rows = clustered(&mut rng, dims, ROWS);
        let shape = Shape::new(dims, CHUNK_WORDS).unwrap();
        let bounds = |step: usize, blocks: u32| {
            let (memory, header) = (Memory::for_rows(shape, ROWS), Header::default());
            let graph = Graph::new(&memory, &header, shape, Metric::L2);
            assert_eq!(graph.encode(7), Ok(()), "there is nothing yet");
            for (row, vector) in rows.chunks_exact(dims).enumerate() {
                graph.put(row as u32, 0, vector).unwrap();
                if row % step == step - 1 {
                    let before = graph.coded();
                    graph.encode(blocks).unwrap();
                    let most = before + blocks.saturating_mul(CODED_BLOCK);
                    let whole = graph.len() / CODED_BLOCK * CODED_BLOCK;
                    assert_eq!(graph.coded(), whole.min(most));
                }
            }
            graph.encode(u32::MAX).unwrap();
            assert_eq!(graph.coded(), 288);
            let query = &rows[..dims];
            let mut bounds = Vec::new();
            graph.bounds(&Bounding::new(Metric::L2, query, 1.0), 0..288, &mut bounds).unwrap();
            if let Some(signed) = Signed::new(Metric::L2, query) {
                graph.sign_bounds(&signed, graph.signed_rows(&(0..288)), &mut bounds).unwrap();
            }
            header.clear();
            assert_eq!(graph.coded(), 0);
            bounds
        };
        let at_once = bounds(ROWS + 1, 1);
        assert!(bounds(1, 1) == at_once && bounds(50, 2) == at_once && bounds(100, 1) == at_once);
    }
}

#[test]
fn ranks_are_hardly_ever_below_bounds_of_sign_codes() {
    let mut rng = SmallRng::seed_from_u64(9);
    for metric in METRICS {
        for (dims, chunk_words) in [
            (16, CHUNK_WORDS),
            (64, CHUNK_WORDS),
            (100, 1 << 15),
            (384, CHUNK_WORDS),
            (768, 1 << 15),
        ] {
            const ROWS: u32 = 700;
            let mut rows = clustered(&mut rng, dims, ROWS as usize);
            rows[5 * dims] = f32::NAN;
            rows[40 * dims] = f32::MAX;
            rows[90 * dims..91 * dims].fill(0.0);
            let shape = Shape::new(dims, chunk_words).unwrap();
            let (memory, header) =
                (Memory::with_chunks(shape, ROWS as usize, chunk_words), Header::default());
            let graph = filled(&memory, &header, shape, metric, dims, &rows);
            let query = clustered(&mut rng, dims, 1);
            let has_signs = metric != Metric::L1 && dims >= 64;
            assert_eq!(graph.signed_rows(&(0..ROWS)), if has_signs { 0..672 } else { ROWS..ROWS });
            let Some(signed) = Signed::new(metric, &query) else {
                assert!(!has_signs);
                continue;
            };
            assert_eq!(graph.signed_rows(&(1..64)), 32..64);
            assert!(graph.signed_rows(&(33..95)).is_empty());
            let mut bounds = Vec::new();
            for rows in [0..32, 32..640, 640..672] {
                graph.sign_bounds(&signed, rows, &mut bounds).unwrap();
            }
            assert_eq!(bounds.len(), 672);
            let ranks: Vec<f64> = (0..672).map(|row| graph.rank_of(&query, row).unwrap()).collect();
            let above = |(rank, bound): &(&f64, &f32)| f64::from(**bound) > **rank;
            let above = ranks.iter().zip(&bounds).filter(above).count();
            assert!(above * 20 < bounds.len(), "{metric:?} {dims}: {above} too high");
            // What is near has a low bound.
            let mut order: Vec<usize> = (0..bounds.len()).collect();
            order.sort_by(|a, b| bounds[*a].total_cmp(&bounds[*b]));
            let lowest: HashSet<usize> = order[..200].iter().copied().collect();
            let mut near: Vec<usize> = (0..ranks.len()).collect();
            near.sort_by(|a, b| ranks[*a].total_cmp(&ranks[*b]));
            let found = near[..20].iter().filter(|row| lowest.contains(row)).count();
            assert!(found >= 18, "{metric:?} {dims}: {found} of the nearest 20");
            assert_eq!(graph.sign_bounds(&signed, 0..100_000, &mut Vec::new()), Err(Corrupt));
        }
    }
}
