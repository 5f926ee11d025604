//! What a deletion did, or would do, in words.

use std::fmt;
use std::fmt::Write as _;

use super::progress_line::bytes;
use crate::commands::delete::{DeleteReport, DeletedBackup, Kept, Tally};

/// The whole text.
pub(super) fn text(report: &DeleteReport, confirmed: bool) -> String {
    let (verb, keeping) = if confirmed { ("deleted", "kept") } else { ("would delete", "would keep") };
    let mut text = String::new();
    let mut line = |line: fmt::Arguments<'_>| writeln!(text, "{line}").expect("a String takes every write");
    if report.kept.as_ref().is_some_and(|kept| kept.backups.is_empty()) {
        line(format_args!("the archive has no complete base backup: nothing is deleted"));
        return text;
    }
    let total = report.total();
    if total.objects == 0 {
        line(format_args!("there is nothing to delete"));
    } else {
        if !report.backups.is_empty() {
            line(format_args!("{verb} {}:", count(report.backups.len() as u64, "base backup")));
        }
        for DeletedBackup { name, complete, tally } in &report.backups {
            let kind = if *complete { "complete" } else { "incomplete" };
            line(format_args!("  {name}  {kind}, {}", sized(*tally)));
        }
        if let Some((first, last)) = report.wal.span {
            let tally = report.wal.tally;
            line(format_args!(
                "{verb} {}, {first} to {last}, {}",
                count(tally.objects, "WAL segment"),
                bytes(tally.bytes)
            ));
        }
        if report.other.objects > 0 {
            let other = if total == report.other { "" } else { "other " };
            line(format_args!(
                "{verb} {}, {}",
                count(report.other.objects, &format!("{other}object")),
                bytes(report.other.bytes)
            ));
        }
        line(format_args!("{verb} {} altogether", sized(total)));
    }
    if let Some(Kept { backups, wal_from: Some(from) }) = &report.kept {
        let oldest = backups.first().expect("at least one is kept when WAL is kept from somewhere on");
        line(format_args!(
            "{keeping} {}, {oldest} and later, and WAL from {from} on, of every timeline",
            count(backups.len() as u64, "complete base backup")
        ));
    }
    if !confirmed && total.objects > 0 {
        line(format_args!(
            "HINT:  This was a dry run. To delete it, say so between delete and the rest: delete --confirm"
        ));
    }
    text
}

fn sized(tally: Tally) -> String {
    format!("{}, {}", count(tally.objects, "object"), bytes(tally.bytes))
}

fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::delete::DeletedWal;

    fn tally(objects: u64, bytes: u64) -> Tally {
        Tally { objects, bytes }
    }

    fn report() -> DeleteReport {
        let backup =
            |name: &str, complete| DeletedBackup { name: name.parse().unwrap(), complete, tally: tally(3, 3 << 20) };
        let wal = DeletedWal {
            tally: tally(2, 1024),
            span: Some(("000000010000000000000001".parse().unwrap(), "000000020000000000000003".parse().unwrap())),
        };
        let kept = Kept {
            backups: vec!["base_000000020000000000000004_00000040".parse().unwrap()],
            wal_from: Some("000000020000000000000004".parse::<crate::formats::wal_name::SegmentName>().unwrap().into()),
        };
        DeleteReport {
            backups: vec![
                backup("base_000000010000000000000001_00000040", false),
                backup("base_000000010000000000000002_00000040", true),
            ],
            wal,
            other: tally(1, 10),
            kept: Some(kept),
        }
    }

    #[test]
    fn a_dry_run_says_what_would_go_and_how_to_do_it() {
        assert_eq!(
            text(&report(), false),
            "would delete 2 base backups:\n  \
               base_000000010000000000000001_00000040  incomplete, 3 objects, 3.0 MiB\n  \
               base_000000010000000000000002_00000040  complete, 3 objects, 3.0 MiB\n\
             would delete 2 WAL segments, 000000010000000000000001 to 000000020000000000000003, 1.0 KiB\n\
             would delete 1 other object, 10 B\n\
             would delete 9 objects, 6.0 MiB altogether\n\
             would keep 1 complete base backup, base_000000020000000000000004_00000040 and later, and WAL from 0000000000000004 on, of every timeline\n\
             HINT:  This was a dry run. To delete it, say so between delete and the rest: delete --confirm\n"
        );
    }

    #[test]
    fn a_real_run_says_what_went() {
        let text = text(&report(), true);
        assert!(text.starts_with("deleted 2 base backups:\n") && text.contains("\nkept 1 "), "{text}");
        assert!(!text.contains("would") && !text.contains("HINT"), "{text}");
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        for confirmed in [true, false] {
            assert_eq!(text(&DeleteReport::default(), confirmed), "there is nothing to delete\n");
            let none = Kept { backups: Vec::new(), wal_from: None };
            let text = text(&DeleteReport { kept: Some(none), ..DeleteReport::default() }, confirmed);
            assert_eq!(text, "the archive has no complete base backup: nothing is deleted\n");
        }
    }
}
