//! The line that tells of one file.

use time::OffsetDateTime;
use time::macros::format_description;

use crate::formats::hex;

pub(super) fn start(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(path) => format!("{{ \"Path\": {},", serde_json::Value::from(path)),
        Err(_) => format!("{{ \"Encoded-Path\": \"{}\",", hex::hex(path)),
    }
}

pub(super) fn end(size: u64, mtime: u64, crc32c: u32) -> String {
    // PostgreSQL writes the number as it lies in memory
    let (mtime, checksum) = (gmt(mtime), hex::hex(&crc32c.to_ne_bytes()));
    format!(
        " \"Size\": {size}, \"Last-Modified\": \"{mtime}\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}"
    )
}

fn gmt(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] GMT"))
        .expect("every field of the format exists in a date with time")
}
