use super::*;
use std::fs;

fn write_rows(path: &Path, rows: &[&[u8]], width: usize) {
    let mut bytes = Vec::new();
    for row in rows {
        bytes.extend(((row.len() / width) as i32).to_le_bytes());
        bytes.extend(*row);
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn ranks_order_as_the_distances_do() {
    let (a, b) = ([3.0, 0.0, 1.0], [0.0, 4.0, 1.0]);
    assert_eq!(Metric::L2.rank(&a, &b), 25.0);
    assert_eq!(Metric::L1.rank(&a, &b), 7.0);
    assert_eq!(Metric::InnerProduct.rank(&a, &b), -1.0);
    let cosine = Metric::Cosine.rank(&a, &b);
    assert!((cosine - (1.0 - 1.0 / 170.0_f64.sqrt())).abs() < 1e-12, "{cosine}");
    assert!(Metric::Cosine.rank(&a, &[0.0; 3]).is_nan());
    let long: Vec<f32> = (0..19).map(|it| it as f32).collect();
    let squares = (0..19).map(|it| f64::from(it * it)).sum::<f64>();
    assert_eq!(Metric::L2.rank(&long, &[0.0; 19]), squares);
}

#[test]
fn malformed_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a_base.bvecs");
    let fails = |bytes: &[u8], why: &str| {
        fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", Matrix::read(&path).unwrap_err());
        assert!(error.contains("a_base.bvecs") && error.contains(why), "{error}");
    };
    fails(&[], "of 0 dimensions");
    fails(&[2, 0, 0], "row 0: cut off");
    fails(&[2, 0, 0, 0, 1], "row 0: cut off");
    fails(&[1, 0, 0, 0, 1, 255, 255, 255, 255], "row 1: not a row");
    fails(&[1, 0, 0, 0, 1, 255, 255, 255, 127], "row 1: cut off");
    fails(&[1, 0, 0, 0, 1, 2, 0, 0, 0, 1, 1], "row 1: 2 dimensions after rows of 1");
    let text = dir.path().join("a.txt");
    assert!(format!("{:#}", Matrix::read(&text).unwrap_err()).contains("a.txt"));
    let floats = dir.path().join("a.fvecs");
    write_rows(&floats, &[&f32::NAN.to_le_bytes()], 4);
    let error = format!("{:#}", Matrix::read(&floats).unwrap_err());
    assert!(error.contains("a.fvecs") && error.contains("finite"), "{error}");
    let hdf5 = Files::Hdf5(dir.path().join("a.hdf5"));
    fs::write(dir.path().join("a.hdf5"), b"\x89HDF\r\n\x1a\n").unwrap();
    let error = format!("{:#}", Dataset::read("a", &hdf5, None, 1, NEAREST).unwrap_err());
    assert!(error.contains("a.hdf5"), "{error}");
}

#[test]
fn files_of_ann_benchmarks_are_read() {
    let whole = crate::state::workspace().join("tests/data/angular.hdf5");
    let read = |path: &Path| Dataset::read("a", &Files::Hdf5(path.to_owned()), None, 9, NEAREST);
    let data = read(&whole).unwrap();
    assert_eq!((data.metric, data.nearest, data.queries.len()), (Metric::Cosine, 10, 2));
    assert_eq!((data.base.len(), data.base.row(0)), (12, Some(&[1.0, 8.0, 4.0][..])));
    for (query, bound) in data.queries.rows().zip(&data.bounds) {
        let mut ranks: Vec<f64> =
            data.base.rows().map(|row| Metric::Cosine.rank(query, row)).collect();
        ranks.sort_by(f64::total_cmp);
        assert_eq!(*bound, ranks[9]);
    }
    let bytes = fs::read(&whole).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.hdf5");
    let mut errors = 0;
    for length in (0..bytes.len()).step_by(97) {
        fs::write(&short, &bytes[..length]).unwrap();
        match read(&short) {
            // The file ends with distances, which are not read.
            Ok(short) => {
                assert_eq!((short.base, short.bounds), (data.base.clone(), data.bounds.clone()))
            }
            Err(error) => {
                assert!(format!("{error:#}").contains("short.hdf5"), "{length}: {error:#}");
                errors += 1;
            }
        }
    }
    assert!(errors > 40, "{errors} errors");
}

/// Five rows on a line, and queries at 0 and 4.
fn line(dir: &Path) {
    write_rows(&dir.join("sift_base.bvecs"), &[&[0], &[1], &[2], &[3], &[4]], 1);
    write_rows(&dir.join("sift_query.bvecs"), &[&[0], &[4]], 1);
}

#[test]
fn answers_are_held_against_the_exact_ones() {
    let dir = tempfile::tempdir().unwrap();
    line(dir.path());
    let files = Files::named(dir.path(), "sift").unwrap();
    let data = Dataset::read("sift", &files, None, 10, NEAREST).unwrap();
    assert_eq!((data.metric, data.nearest, data.queries.len()), (Metric::L2, 5, 2));
    assert_eq!(data.hits(0, &[0, 1, 2, 3, 4]), 5);
    assert_eq!(data.hits(0, &[0, 0, 1, 9, -1]), 2);
    assert_eq!(data.hits(7, &[0]), 0);
    assert_eq!(data.head(2).nearest, 2);
    assert_eq!(data.head(2).hits(0, &[0, 3]), 1);
}

#[test]
fn rows_as_far_as_the_last_are_hits() {
    let base = Matrix::new(1, [vec![0.0; 9], vec![1.0, -1.0, 2.0]].concat()).unwrap();
    let queries = Matrix::new(1, vec![0.0]).unwrap();
    let bounds = exact(Metric::L2, &base, &queries, 10);
    assert_eq!(bounds, [1.0]);
    let data =
        Dataset { name: String::new(), metric: Metric::L2, base, queries, bounds, nearest: 10 };
    assert_eq!((data.hits(0, &[9]), data.hits(0, &[10]), data.hits(0, &[11])), (1, 1, 0));
}

#[test]
fn a_truth_must_fit_the_set() {
    let dir = tempfile::tempdir().unwrap();
    line(dir.path());
    let truth = dir.path().join("sift_truth.ivecs");
    let read = |answers: &[&[i32]]| {
        let rows: Vec<Vec<u8>> = answers
            .iter()
            .map(|row| row.iter().flat_map(|id| id.to_le_bytes()).collect())
            .collect();
        let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
        write_rows(&truth, &rows, 4);
        let files = Files::named(dir.path(), "sift").unwrap();
        Dataset::read("sift", &files, None, 10, NEAREST).map_err(|error| format!("{error:#}"))
    };
    let whole: &[i32] = &[0, 1, 2, 3, 4];
    assert_eq!(read(&[whole, whole]).unwrap().hits(1, &[4]), 1);
    for (answers, why) in [
        (&[whole][..], "1 answers to 2 queries"),
        (&[whole, &[0, 1]], "row 1: an answer of less than 5 rows"),
        (&[whole, &[0, 1, 2, 3, 5]], "row 5 is not one of 5"),
        (&[whole, &[0, 1, 2, 3, -1]], "row -1 is not one of 5"),
    ] {
        let error = read(answers).unwrap_err();
        assert!(error.contains("sift_truth.ivecs") && error.contains(why), "{error}");
    }
}

#[test]
fn exact_answers_are_those_of_sorting() {
    let elements: Vec<f32> = (0..1500_u32).map(|it| (it * 7919 % 1009) as f32).collect();
    let base = Matrix::new(3, elements).unwrap();
    let queries = base.part(3..8);
    for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine, Metric::L1] {
        for (query, bound) in queries.rows().zip(exact(metric, &base, &queries, 10)) {
            let mut ranks: Vec<f64> = base.rows().map(|row| metric.rank(query, row)).collect();
            ranks.sort_by(f64::total_cmp);
            assert_eq!(bound, ranks[9], "{metric:?}");
        }
    }
}

#[test]
fn unknown_sets_and_metrics_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    line(dir.path());
    let error = format!("{:#}", Files::named(dir.path(), "glove").unwrap_err());
    assert!(error.contains("glove_base.fvecs"), "{error}");
    let files = Files::Separate {
        base: dir.path().join("sift_base.bvecs"),
        query: dir.path().join("sift_query.bvecs"),
        truth: None,
    };
    let error = format!("{:#}", Dataset::read("words", &files, None, 1, NEAREST).unwrap_err());
    assert!(error.contains("--metric"), "{error}");
    assert!(Metric::named("hamming").is_err());
}
