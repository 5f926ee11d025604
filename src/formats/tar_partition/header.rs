//! The bytes before and after a member's contents: GNU tar headers, which every WAL-E, Python and GNU tar reads
//! (`spec/wal-e-format.md` §4.5).

use tar::{EntryType, Header};

/// Tar counts in blocks of 512 bytes.
pub const BLOCK: usize = 512;

/// A stream's length is a multiple of this, as Python's is. More zeros than a pipe holds would hang WAL-E (§4.5, RULE).
const RECORD: u64 = 10_240;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind<'a> {
    /// A file with so many bytes of contents.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link and its raw text.
    Symlink(&'a [u8]),
}

/// What a header says of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The path relative to the data directory; `/` for the data directory itself. A directory's ends in a slash.
    pub name: &'a [u8],
    /// What it is.
    pub kind: MemberKind<'a>,
    /// The permission bits; higher ones are dropped.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// The owner's name; empty when the system knows none.
    pub user: &'a str,
    /// The owning group's name; empty when the system knows none.
    pub group: &'a str,
    /// Seconds since 1970.
    pub mtime: u64,
}

impl Member<'_> {
    /// Appends the header: one block, preceded by GNU long-name members where name or link text are over 100 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let link: &[u8] = if let MemberKind::Symlink(text) = self.kind { text } else { b"" };
        long_text(out, EntryType::GNULongLink, link);
        long_text(out, EntryType::GNULongName, self.name);
        let mut header = Header::new_gnu();
        set_field(&mut header, 0, self.name);
        set_field(&mut header, 157, link);
        header.set_mode(self.mode & 0o7777);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        set_field(&mut header, 265, account_name(self.user));
        set_field(&mut header, 297, account_name(self.group));
        header.set_mtime(self.mtime);
        let (kind, size) = match self.kind {
            MemberKind::File(size) => (EntryType::Regular, size),
            MemberKind::Directory => (EntryType::Directory, 0),
            MemberKind::Symlink(_) => (EntryType::Symlink, 0),
        };
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        out.extend(header.as_bytes());
    }
}

/// The bytes of a 32-byte name field. Python cuts a longer name, which might then be another's.
fn account_name(name: &str) -> &[u8] {
    if name.len() > 32 { b"" } else { name.as_bytes() }
}

/// Writes into the 100-byte name field (at 0) or link field (at 157), or another that `text` fits into, without the checks that would refuse `/`.
fn set_field(header: &mut Header, at: usize, text: &[u8]) {
    let text = &text[..text.len().min(100)];
    header.as_mut_bytes()[at..at + text.len()].copy_from_slice(text);
}

fn long_text(out: &mut Vec<u8>, kind: EntryType, text: &[u8]) {
    if text.len() <= 100 {
        return;
    }
    let mut header = Header::new_gnu();
    set_field(&mut header, 0, b"././@LongLink");
    header.set_entry_type(kind);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(text.len() as u64 + 1);
    header.set_cksum();
    out.extend(header.as_bytes());
    out.extend(text);
    out.push(0);
    out.resize(out.len() + padding(text.len() as u64 + 1), 0);
}

/// How many zeros follow `size` bytes of contents.
pub fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

/// How many zeros end a stream that is `written` bytes long so far: two blocks, and up to a whole record.
pub fn ending(written: u64) -> usize {
    ((written + 2 * BLOCK as u64).next_multiple_of(RECORD) - written) as usize
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn member(name: &[u8], kind: MemberKind<'static>) -> Vec<u8> {
        let mut out = Vec::new();
        let (user, group) = ("postgres", "dba");
        Member { name, kind, mode: 0o100_700, uid: 26, gid: 27, user, group, mtime: 1_700_000_000 }.encode(&mut out);
        out
    }

    #[test]
    fn the_roots_header_is_wal_es() {
        // §12, vector 18
        let header = member(b"/", MemberKind::Directory);
        assert_eq!(header.len(), BLOCK);
        assert_eq!(
            (&header[..2], header[156], &header[100..107], &header[257..265]),
            (&b"/\0"[..], b'5', &b"0000700"[..], &b"ustar  \0"[..])
        );
    }

    #[test]
    fn the_owners_names_are_where_python_puts_them_and_whole_or_not_at_all() {
        for (name, written) in
            [("postgres", &b"postgres"[..]), ("", b""), (&"n".repeat(32), &[b'n'; 32]), (&"n".repeat(33), b"")]
        {
            let mut header = Vec::new();
            let (user, group) = (name, "dba");
            Member { name: b"x", kind: MemberKind::Directory, mode: 0o700, uid: 1, gid: 1, user, group, mtime: 1 }
                .encode(&mut header);
            let mut field = [0; 32];
            field[..written.len()].copy_from_slice(written);
            assert_eq!((&header[265..297], &header[297..301]), (&field[..], &b"dba\0"[..]));
            let read = Header::from_byte_slice(&header);
            assert_eq!((read.username_bytes(), read.groupname_bytes()), (Some(written), Some(&b"dba"[..])));
        }
    }

    #[test]
    fn a_size_beyond_eleven_octal_digits_is_read_back() {
        for size in [(8 << 30) - 1, 8 << 30, 64 << 30] {
            let header = member(b"large", MemberKind::File(size));
            assert_eq!(Header::from_byte_slice(&header).entry_size().unwrap(), size);
            assert_eq!(header[124] == 0x80, size >= 8 << 30, "base 256, which Python's tarfile reads (§4.5)");
        }
    }

    #[test]
    fn a_stream_is_read_back() {
        let long = [b"base/".to_vec(), vec![b'x'; 200]].concat();
        let target: &'static [u8] = &[b'y'; 150];
        let mut stream = member(b"/", MemberKind::Directory);
        stream.extend(member(&long, MemberKind::File(3)));
        stream.extend(b"abc");
        stream.resize(stream.len() + padding(3), 0);
        stream.extend(member(b"link", MemberKind::Symlink(target)));
        stream.resize(stream.len() + ending(stream.len() as u64), 0);
        assert_eq!(stream.len() % 10_240, 0);
        let mut archive = tar::Archive::new(&stream[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            let header = entry.header();
            assert_eq!(
                (header.mode().unwrap(), header.uid().unwrap(), header.mtime().unwrap()),
                (0o700, 26, 1_700_000_000)
            );
            seen.push((entry.path_bytes().to_vec(), entry.link_name_bytes().map(|l| l.to_vec()), contents));
        }
        assert_eq!(
            seen,
            [
                (b"/".to_vec(), None, vec![]),
                (long, None, b"abc".to_vec()),
                (b"link".to_vec(), Some(target.to_vec()), vec![])
            ]
        );
    }

    #[test]
    fn a_stream_ends_with_two_blocks_and_at_most_one_record_more() {
        for written in (0..40_960).step_by(BLOCK) {
            let zeros = ending(written);
            assert!((1024..1024 + 10_240).contains(&zeros) && (written + zeros as u64).is_multiple_of(10_240));
        }
    }
}
