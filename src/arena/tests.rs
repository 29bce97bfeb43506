use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::format::{Footer, Header, RowShape, FOOTER_BYTES, TABLE, VERSION};
use super::reader::SecondPlace;
use super::*;
use crate::metric::Metric;
use crate::quant::{self, sign, Factors};

static STOP: AtomicBool = AtomicBool::new(false);

const SEGMENT: u128 = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;

/// A bucket of so many rows, and spilled ones, with some numbers for codes.
fn encoded(rows: u32, spilled: u32, dim: u32) -> EncodedBucket {
    let shape = RowShape::new(dim, code_bits(dim)).unwrap();
    let stride = shape.stride;
    let factor = |i| Factors { scale: i as f32, norm: -2.0 * i as f32, error: 0.5 };
    let code = |i: usize| if i % stride < dim as usize { (i * 37 + 11) as i8 } else { 0 };
    let codes = (0..rows as usize * stride).map(code).collect();
    let rows_signed = if shape.code_bits == 0 { 0 } else { (rows + spilled) as usize };
    let places = sign::places(rows_signed);
    let column = |part: usize| (0..places).map(|i| (i * 3 + part) as f32).collect();
    let signs = 0..sign::codes_bytes(shape.code_bits, places);
    EncodedBucket {
        signs: signs.map(|i| (i * 31 + 5) as u8).collect(),
        columns: [column(0), column(1), column(2)],
        spilled: (0..spilled).map(|i| SpilledRow { entry: i, place: i * 7 }).collect(),
        factors: (0..rows).map(factor).collect(),
        codes,
    }
}

/// Bits of a row's sign code: more than dimensions, as short rows have them.
fn code_bits(dim: u32) -> u32 {
    if dim < 64 {
        0
    } else {
        dim.next_multiple_of(64) * 2
    }
}

/// Rows spilled into a bucket of so many.
fn spilled(rows: u32, dim: u32) -> u32 {
    if dim < 64 {
        0
    } else {
        rows % 41 * 5 % 41
    }
}

fn name() -> ArenaName {
    ArenaName::new("16384", SEGMENT).unwrap()
}

fn identity(dim: u32, shapes: &[(u32, u32)]) -> Identity {
    Identity {
        segment: SEGMENT,
        dim,
        metric: Metric::L2,
        rows: shapes.iter().map(|s| u64::from(s.1)).sum(),
        buckets: shapes.iter().filter(|(_, rows)| *rows > 0).count() as u32,
        code_bits: code_bits(dim),
    }
}

fn layout(dim: u32, shapes: &[(u32, u32)]) -> Result<Layout, ArenaError> {
    let buckets: Vec<_> = shapes
        .iter()
        .map(|&(bucket, rows)| BucketShape { bucket, rows, spilled: spilled(rows, dim) })
        .collect();
    Layout::new(identity(dim, shapes), &buckets)
}

fn fill(mut writer: Writer, dim: u32, shapes: &[(u32, u32)]) -> Arena {
    for &(_, n) in shapes {
        writer.push_bucket(&encoded(n, spilled(n, dim), dim)).unwrap();
    }
    writer.finish().unwrap()
}

fn write(dir: &Path, dim: u32, shapes: &[(u32, u32)]) -> Arena {
    fill(Writer::create(dir, &name(), layout(dim, shapes).unwrap()).unwrap(), dim, shapes)
}

fn assert_holds(arena: &Arena, dim: u32, shapes: &[(u32, u32)]) {
    let mut first_row = 0;
    assert_eq!(arena.buckets().len(), shapes.len());
    for (i, &(bucket, n)) in shapes.iter().enumerate() {
        assert_eq!(arena.find(bucket), Some(i));
        arena.will_need(i);
        let expected = encoded(n, spilled(n, dim), dim);
        let codes = arena.bucket(i).unwrap();
        assert_eq!(codes.first_row, first_row);
        assert_eq!(codes.factors, expected.factors);
        assert_eq!(codes.codes, expected.codes);
        assert_eq!(codes.stride, quant::stride(dim as usize));
        let is_narrow = codes.signs.is_some_and(|signs| sign::is_narrow(signs.rows.add.len()));
        assert!(is_narrow || (codes.factors.as_ptr() as usize).is_multiple_of(64));
        assert_eq!(codes.codes.as_ptr() as usize % 64, 0);
        assert_eq!(codes.signs.is_some(), dim >= 64);
        if let Some(signs) = codes.signs {
            assert_eq!(signs.codes, expected.signs);
            assert_eq!(signs.rows.add, expected.columns[0]);
            assert_eq!(signs.rows.scale, expected.columns[1]);
            assert_eq!(signs.rows.error, expected.columns[2]);
            assert_eq!(signs.spilled, expected.spilled);
            assert_eq!(signs.codes.as_ptr() as usize % 64, 0);
        }
        first_row += u64::from(n);
    }
    assert!(matches!(arena.bucket(shapes.len()), Err(ArenaError::Layout(_))));
}

/// Strides that leave zeroes behind factors and codes, and an empty bucket.
const SMALL: (u32, &[(u32, u32)]) = (5, &[(2, 3), (7, 0), (900, 5)]);

#[test]
fn what_is_written_is_read() {
    let many: Vec<(u32, u32)> = (0..200).map(|i| (i * 3, i % 7)).collect();
    let shapes: [(u32, &[(u32, u32)]); 6] = [
        SMALL,
        (1, &[(0, 1)]),
        (64, &[(5, 100)]),
        (100, &[]),
        (768, &[(1, 2), (2, 9)]),
        (16, &many),
    ];
    for (dim, shapes) in shapes {
        let dir = tempfile::tempdir().unwrap();
        let written = write(dir.path(), dim, shapes);
        assert_holds(&written, dim, shapes);
        let opened = Arena::open(dir.path(), &name(), &identity(dim, shapes)).unwrap();
        assert_eq!(opened.identity(), &identity(dim, shapes));
        assert_holds(&opened, dim, shapes);
        assert_eq!(opened.find(1_000_000), None);
        assert_eq!(opened.bytes().len() as u64, layout(dim, shapes).unwrap().file_bytes());
        assert_eq!(list(dir.path()).unwrap(), [Listed::Arena(name())]);

        let memory = Writer::in_memory(layout(dim, shapes).unwrap()).unwrap();
        let memory = fill(memory, dim, shapes);
        assert_holds(&memory, dim, shapes);
        assert_eq!(memory.bytes(), opened.bytes());
        assert_eq!(memory.bytes(), fs::read(name().path(dir.path())).unwrap());
    }
}

#[test]
fn second_places_are_those_that_rows_were_spilled_to() {
    let shapes = [(3, 100), (9, 100), (20, 100)];
    let mut writer = Writer::in_memory(layout(64, &shapes).unwrap()).unwrap();
    let mut expected = vec![SecondPlace::NONE; 300];
    for (entry, (_, rows)) in (0..).zip(shapes) {
        let mut encoded = encoded(rows, spilled(rows, 64), 64);
        let other = (entry + 1) % 3;
        for (nth, spilled) in (0..).zip(&mut encoded.spilled) {
            *spilled = SpilledRow { entry: other, place: nth * 3 };
            let row = other * 100 + nth * 3;
            expected[row as usize] = SecondPlace { entry, place: 100 + nth };
        }
        writer.push_bucket(&encoded).unwrap();
    }
    assert_eq!(writer.finish().unwrap().second_places(&STOP).unwrap(), expected);
    assert!(expected.iter().filter(|second| **second != SecondPlace::NONE).count() == 24);
    // Entries that there are not.
    let astray = fill(Writer::in_memory(layout(64, &shapes).unwrap()).unwrap(), 64, &shapes);
    assert!(astray.second_places(&STOP).is_err());
    let (dim, shapes) = SMALL;
    let unsigned = fill(Writer::in_memory(layout(dim, shapes).unwrap()).unwrap(), dim, shapes);
    assert_eq!(unsigned.second_places(&STOP).unwrap(), [SecondPlace::NONE; 8]);
}

#[test]
fn every_damaged_byte_is_noticed() {
    let (dim, shapes) = SMALL;
    let dir = tempfile::tempdir().unwrap();
    let arena = write(dir.path(), dim, shapes);
    let entries = arena.buckets().to_vec();
    let good = arena.bytes().to_vec();
    drop(arena);
    let data = layout(dim, shapes).unwrap().data as usize;
    let footer = good.len() - FOOTER_BYTES as usize;
    let path = name().path(dir.path());
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            fs::write(&path, &bad).unwrap();
            let opened = Arena::open(dir.path(), &name(), &identity(dim, shapes));
            if at < data || at >= footer {
                let e = opened.expect_err("an arena with a damaged byte was opened");
                let fits = match at {
                    8..12 => matches!(e, ArenaError::Version),
                    _ => matches!(e, ArenaError::Damaged(_)),
                };
                assert!(fits, "byte {at}: {e}");
                continue;
            }
            let opened = opened.unwrap();
            let hit = entries.iter().rposition(|e| e.offset as usize <= at).unwrap();
            assert!(opened.is_table_sound());
            for i in 0..entries.len() {
                assert_eq!(opened.is_block_sound(i), i != hit, "byte {at}, bucket {i}");
                for _ in 0..2 {
                    let damaged = matches!(opened.bucket(i), Err(ArenaError::Damaged(_)));
                    assert_eq!(damaged, i == hit, "byte {at}, bucket {i}");
                }
            }
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let (dim, shapes) = SMALL;
    let dir = tempfile::tempdir().unwrap();
    let good = write(dir.path(), dim, shapes).bytes().to_vec();
    let path = name().path(dir.path());
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        let opened = Arena::open(dir.path(), &name(), &identity(dim, shapes));
        assert!(matches!(opened, Err(ArenaError::Truncated)), "length {length}");
    }
    for more in [1, 64, 4096] {
        let mut long = good.clone();
        long.resize(good.len() + more, 0);
        fs::write(&path, &long).unwrap();
        let opened = Arena::open(dir.path(), &name(), &identity(dim, shapes));
        assert!(matches!(opened, Err(ArenaError::Damaged(_))), "{more} bytes more");
    }
    // Nothing but zeroes, as a crash of the file system may leave it.
    fs::write(&path, vec![0; good.len()]).unwrap();
    let opened = Arena::open(dir.path(), &name(), &identity(dim, shapes));
    assert!(matches!(opened, Err(ArenaError::Damaged(_))));
}

type Change<'a> = &'a dyn Fn(&mut Header, &mut [BucketEntry], &mut Footer);

/// Changes the header's or the table's numbers and makes all checksums right again.
#[test]
fn offsets_and_counts_are_not_believed_for_their_checksum() {
    let (dim, shapes) = SMALL;
    let dir = tempfile::tempdir().unwrap();
    let good = write(dir.path(), dim, shapes).bytes().to_vec();
    let path = name().path(dir.path());
    let table = TABLE as usize;
    let data = layout(dim, shapes).unwrap().data as usize;
    let opened = |change: Change| {
        let mut bytes = good.clone();
        let (head, rest) = bytes.split_at_mut(table);
        let (room, rest) = rest.split_at_mut(data - table);
        let foot = rest.len() - FOOTER_BYTES as usize;
        let mut header: Header = bytemuck::pod_read_unaligned(head);
        let mut footer: Footer = bytemuck::pod_read_unaligned(&rest[foot..]);
        let mut entries: Vec<BucketEntry> =
            room.chunks_exact(32).map(bytemuck::pod_read_unaligned).collect();
        change(&mut header, &mut entries, &mut footer);
        for (room, entry) in room.chunks_exact_mut(32).zip(&entries) {
            room.copy_from_slice(bytemuck::bytes_of(entry));
        }
        header.table_crc = crc32fast::hash(room);
        header.crc = header.checksum();
        footer.crc = footer.checksum();
        head.copy_from_slice(bytemuck::bytes_of(&header));
        rest[foot..].copy_from_slice(bytemuck::bytes_of(&footer));
        fs::write(&path, &bytes).unwrap();
        Arena::open(dir.path(), &name(), &identity(dim, shapes)).map(|_| ())
    };
    assert!(opened(&|_, _, _| ()).is_ok());
    let wrong: [Change; 22] = [
        &|h, _, _| h.stride = 64,
        &|h, _, _| h.table = 192,
        &|h, _, _| h.data += 64,
        &|h, _, _| h.data = u64::MAX,
        &|h, _, _| h.footer -= 64,
        &|h, _, _| h.footer = u64::MAX,
        &|h, _, _| h.length -= 64,
        &|_, e, _| e[0].rows = u32::MAX,
        &|_, e, _| e[0].rows = 2,
        &|_, e, _| e[2].rows = 4,
        &|_, e, _| e[1].bucket = 2,
        &|_, e, _| e[2].bucket = 0,
        &|_, e, _| e[1].first_row = 2,
        &|_, e, _| e[1].offset += 64,
        &|_, e, _| e[0].offset = u64::MAX - 63,
        &|_, e, _| e[0].spilled = 1,
        // The directory's words follow, two an entry.
        &|_, e, _| e[4].bucket ^= 1,
        &|_, e, _| e[11].first_row ^= 1,
        &|h, _, _| h.words -= 1,
        &|_, _, f| f.length += 64,
        &|_, _, f| f.segment[0] ^= 1,
        &|_, _, f| f.magic[0] ^= 1,
    ];
    for (i, change) in wrong.iter().enumerate() {
        assert!(matches!(opened(change), Err(ArenaError::Damaged(_))), "change {i}");
    }
    assert!(matches!(opened(&|h, _, _| h.length += 64), Err(ArenaError::Truncated)));
    assert!(matches!(opened(&|h, _, _| h.version = VERSION + 1), Err(ArenaError::Version)));
}

#[test]
fn an_arena_of_something_else_is_not_used() {
    let (dim, shapes) = SMALL;
    let dir = tempfile::tempdir().unwrap();
    let own = identity(dim, shapes);
    assert!(matches!(Arena::open(dir.path(), &name(), &own), Err(ArenaError::Missing)));
    assert!(matches!(
        Arena::open(&dir.path().join("none"), &name(), &own),
        Err(ArenaError::Missing)
    ));
    write(dir.path(), dim, shapes);
    for other in [
        Identity { segment: SEGMENT ^ 1, ..own },
        Identity { dim: 6, ..own },
        Identity { metric: Metric::L1, ..own },
        Identity { rows: 9, ..own },
        Identity { buckets: 3, ..own },
        Identity { code_bits: 64, ..own },
    ] {
        let opened = Arena::open(dir.path(), &name(), &other);
        assert!(matches!(opened, Err(ArenaError::OtherSegment)), "{other:?}");
    }
    fs::remove_file(name().path(dir.path())).unwrap();
    fs::create_dir(name().path(dir.path())).unwrap();
    assert!(matches!(Arena::open(dir.path(), &name(), &own), Err(ArenaError::Damaged(_))));
}

#[test]
fn an_unfinished_writer_leaves_nothing() {
    let (dim, shapes) = SMALL;
    let dir = tempfile::tempdir().unwrap();
    let new = || Writer::create(dir.path(), &name(), layout(dim, shapes).unwrap()).unwrap();
    let mut writer = new();
    let other = new();
    let listed = list(dir.path()).unwrap();
    assert_eq!(listed.len(), 2);
    for listed in listed {
        let Listed::Temporary { name: of, pid, path } = listed else { panic!("{listed:?}") };
        assert_eq!((of, pid), (name(), std::process::id()));
        assert!(path.exists());
    }
    drop(other);
    let first = encoded(3, 0, dim);
    writer.push_bucket(&first).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let mut writer = new();
    let mut short = first.clone();
    short.factors.pop();
    assert!(matches!(writer.push_bucket(&short), Err(ArenaError::Layout(_))));
    let mut short = first.clone();
    short.codes.pop();
    assert!(matches!(writer.push_bucket(&short), Err(ArenaError::Layout(_))));
    let mut more = first.clone();
    more.spilled.push(SpilledRow { entry: 0, place: 0 });
    assert!(matches!(writer.push_bucket(&more), Err(ArenaError::Layout(_))));
    writer.push_bucket(&first).unwrap();
    assert!(matches!(writer.finish(), Err(ArenaError::Layout(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let mut memory = Writer::in_memory(layout(1, &[]).unwrap()).unwrap();
    assert!(matches!(memory.push_bucket(&EncodedBucket::default()), Err(ArenaError::Layout(_))));
}

#[test]
fn a_mapping_outlives_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let shapes = [(0, 4000), (1, 10)];
    let first = write(dir.path(), 64, &shapes);
    // Another arena takes the name, then that one goes as well.
    let smaller = [(3, 1)];
    let second = write(dir.path(), 64, &smaller);
    let reopened = Arena::open(dir.path(), &name(), &identity(64, &smaller)).unwrap();
    remove(dir.path(), &name()).unwrap();
    remove(dir.path(), &name()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_holds(&first, 64, &shapes);
    assert_holds(&second, 64, &smaller);
    assert_holds(&reopened, 64, &smaller);
}

#[test]
fn layouts_are_checked() {
    let bad = |identity: Identity, shapes: &[(u32, u32)]| {
        let shapes: Vec<_> =
            shapes.iter().map(|&(bucket, rows)| BucketShape { bucket, rows, spilled: 0 }).collect();
        assert!(matches!(Layout::new(identity, &shapes), Err(ArenaError::Layout(_))));
    };
    for shapes in [[(1, 1), (1, 1)], [(2, 1), (1, 1)]] {
        bad(identity(8, &shapes), &shapes);
    }
    let shapes = [(1, 1), (2, 1)];
    let own = identity(8, &shapes);
    bad(Identity { rows: 3, ..own }, &shapes);
    bad(Identity { buckets: 3, ..own }, &shapes);
    bad(Identity { dim: 0, ..own }, &shapes);
    bad(Identity { dim: quant::MAX_DIM as u32 + 1, ..own }, &shapes);
    bad(Identity { dim: u32::MAX, ..own }, &shapes);
    bad(Identity { code_bits: 63, ..own }, &shapes);
    bad(Identity { code_bits: 320, ..own }, &shapes);
    let spilled = [BucketShape { bucket: 1, rows: 1, spilled: 1 }];
    let refused = Layout::new(identity(63, &[(1, 1)]), &spilled);
    assert!(matches!(refused, Err(ArenaError::Layout(_))), "no sign codes, nothing to spill");
    assert!(Layout::new(identity(64, &[(1, 1)]), &spilled).is_ok());
    let huge: Vec<(u32, u32)> = (0..40_000).map(|i| (i, u32::MAX)).collect();
    bad(identity(quant::MAX_DIM as u32, &huge), &huge);
    // As large as it gets, and nothing of it is allocated.
    let large = layout(16_000, &[(0, u32::MAX), (1, u32::MAX)]).unwrap();
    assert!(large.file_bytes() > 2 * u64::from(u32::MAX) * 16_000);
    assert_eq!(large.stride(), 16_000);
}

#[test]
fn names_are_parsed_strictly() {
    for relation in ["16384", "1", "4294967295", "t3_16384", "t0_5"] {
        let name = ArenaName::new(relation, SEGMENT).unwrap();
        assert_eq!(ArenaName::parse(&name.to_string()), Some(name.clone()));
        assert_eq!((name.relation(), name.segment()), (relation, SEGMENT));
    }
    assert_eq!(name().to_string(), "pgsql_tmp_drift.16384.0123456789abcdef0011223344556677");
    let small = ArenaName::new("7", 1).unwrap();
    assert_eq!(small.to_string(), "pgsql_tmp_drift.7.00000000000000000000000000000001");
    for relation in [
        "",
        "0",
        "007",
        "+1",
        "4294967296",
        "16384.1",
        "16384_vm",
        "16384_init",
        "t_5",
        "t3_",
        "t3",
        "t03_5",
        "T3_5",
        "..",
        "../1",
        "1/2",
        "t3_5_6",
        "1 ",
        "١",
    ] {
        assert_eq!(ArenaName::new(relation, 1), None, "{relation:?}");
    }
    for name in [
        "",
        "16384",
        "pgsql_tmp123.4",
        "pgsql_tmp_drift.",
        "pgsql_tmp_drift.16384",
        "pgsql_tmp_drift.16384.",
        "pgsql_tmp_drift.16384.0123456789abcdef001122334455667",
        "pgsql_tmp_drift.16384.0123456789abcdef00112233445566770",
        "pgsql_tmp_drift.16384.0123456789ABCDEF0011223344556677",
        "pgsql_tmp_drift.16384.+123456789abcdef0011223344556677",
        "pgsql_tmp_drift.16384.0123456789abcdef0011223344556677.tmp",
        "pgsql_tmp_drift..0123456789abcdef0011223344556677",
        "xpgsql_tmp_drift.16384.0123456789abcdef0011223344556677",
    ] {
        assert_eq!(ArenaName::parse(name), None, "{name:?}");
    }
}

#[test]
fn a_directory_lists_only_what_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    let arena = name().to_string();
    let temporary = format!("{arena}.4711-12.tmp");
    for file in ["16384", "16384.1", "PG_VERSION", "pgsql_tmp4711.0", "pgsql_tmp_drift.x", &arena] {
        fs::write(dir.path().join(file), b"").unwrap();
    }
    let near = ["4711.tmp", "-1.tmp", "1-.tmp", "+1-1.tmp", "4294967296-1.tmp", "1-1.tmp2", "1-1"];
    for process in near {
        fs::write(dir.path().join(format!("{arena}.{process}")), b"").unwrap();
    }
    fs::write(dir.path().join(&temporary), b"").unwrap();
    let mut listed = list(dir.path()).unwrap();
    listed.sort_by_key(|l| matches!(l, Listed::Temporary { .. }));
    let path = dir.path().join(&temporary);
    let expected = [Listed::Arena(name()), Listed::Temporary { name: name(), pid: 4711, path }];
    assert_eq!(listed, expected);
    assert_eq!(list(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_leftover_of_the_same_process_id_is_no_obstacle() {
    let (dim, shapes) = SMALL;
    let dir = tempfile::tempdir().unwrap();
    for number in 0..100 {
        let leftover = format!("{}.{}-{number}.tmp", name(), std::process::id());
        fs::write(dir.path().join(leftover), b"old").unwrap();
    }
    assert_holds(&write(dir.path(), dim, shapes), dim, shapes);
}

#[test]
fn errors_tell_a_full_disk() {
    for (code, full) in [(libc::ENOSPC, true), (libc::EDQUOT, true), (libc::EIO, false)] {
        let e = ArenaError::from(io::Error::from_raw_os_error(code));
        assert_eq!(e.is_out_of_space(), full, "{e}");
    }
    assert!(!ArenaError::Missing.is_out_of_space());
    let e = Writer::create(Path::new("/nonexistent"), &name(), layout(1, &[]).unwrap());
    assert!(matches!(e, Err(ArenaError::Io(e)) if e.kind() == io::ErrorKind::NotFound));
}
