//! The contract of `Store` as one test suite for every store. The unit tests run it over the stores that need no server;
//! `tests/store_contract.rs` includes this file to run it over all of them.

use bytes::Bytes;
use futures::TryStreamExt;

use crate::storage::{Kind, MIN_PART_SIZE_BYTES, Put, PutOptions, Result, Store, list_all};

/// Holds a store to the contract. What it writes begins with `prefix`, where nothing may be yet.
pub(crate) async fn check(store: &dyn Store, prefix: &str) {
    absent_or_whole(store, &format!("{prefix}whole/")).await;
    never_replaces(store, &format!("{prefix}replace/")).await;
    uploads_in_parts(store, &format!("{prefix}parts/")).await;
    reads_from_an_offset(store, &format!("{prefix}ranges/")).await;
    lists_in_byte_order(store, &format!("{prefix}list/")).await;
    deletes(store, &format!("{prefix}delete/")).await;
    keeps_odd_keys_apart(store, &format!("{prefix}odd/")).await;
}

/// Holds a store whose bucket or root is missing to the contract: that is never "not there".
pub(crate) async fn check_missing(store: &dyn Store) {
    let kind = |result: Result<()>| result.expect_err("there is no such store").kind();
    assert_eq!(kind(store.get("a/b", 0, None).await.map(drop)), Kind::Misconfigured, "get");
    assert_eq!(kind(store.head("a/b").await.map(drop)), Kind::Misconfigured, "head");
    assert_eq!(kind(store.list("a/", None).await.map(drop)), Kind::Misconfigured, "list");
    assert_eq!(kind(store.put("a/b", Bytes::new().into(), &options()).await.map(drop)), Kind::Misconfigured, "put");
    assert_eq!(kind(store.begin_upload("a/b", &options()).await.map(drop)), Kind::Misconfigured, "begin_upload");
    assert_eq!(kind(store.delete("a/b").await), Kind::Misconfigured, "delete");
}

fn options() -> PutOptions {
    PutOptions::default()
}

async fn read(store: &dyn Store, key: &str, from: u64) -> Result<Vec<u8>> {
    let object = store.get(key, from, None).await?;
    let chunks: Vec<Bytes> = object.body.try_collect().await?;
    Ok(chunks.concat())
}

async fn kind_of_get(store: &dyn Store, key: &str) -> Kind {
    store.get(key, 0, None).await.map(drop).expect_err("the key is absent").kind()
}

/// Bytes without a period that chunk sizes share.
fn noise(size: usize) -> Bytes {
    (0..size as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

async fn absent_or_whole(store: &dyn Store, prefix: &str) {
    let key = format!("{prefix}a");
    assert_eq!(kind_of_get(store, &key).await, Kind::NotFound);
    assert_eq!(store.head(&key).await.unwrap_err().kind(), Kind::NotFound);
    assert!(list_all(store, prefix).await.unwrap().is_empty());

    let body = noise(3_000_001);
    assert_eq!(store.put(&key, body.clone().into(), &options()).await.unwrap(), Put::Stored);
    assert_eq!(read(store, &key, 0).await.unwrap(), body);
    let head = store.head(&key).await.unwrap();
    assert_eq!(head.size, body.len() as u64);
    let object = store.get(&key, 0, head.etag.as_deref()).await.unwrap();
    assert_eq!(object.head.size, head.size);
    assert_eq!(object.head.etag, head.etag);
    // A beginning of a key is no key.
    assert_eq!(kind_of_get(store, prefix.trim_end_matches('/')).await, Kind::NotFound);

    let empty = format!("{prefix}empty");
    assert_eq!(store.put(&empty, Bytes::new().into(), &options()).await.unwrap(), Put::Stored);
    assert_eq!(read(store, &empty, 0).await.unwrap(), b"");
    assert_eq!(store.head(&empty).await.unwrap().size, 0);
}

async fn never_replaces(store: &dyn Store, prefix: &str) {
    let key = format!("{prefix}a");
    assert_eq!(store.put(&key, Bytes::from_static(b"first").into(), &options()).await.unwrap(), Put::Stored);
    assert_eq!(store.put(&key, Bytes::from_static(b"second").into(), &options()).await.unwrap(), Put::Exists);
    assert_eq!(store.put(&key, Bytes::from_static(b"first").into(), &options()).await.unwrap(), Put::Exists);
    assert_eq!(read(store, &key, 0).await.unwrap(), b"first");

    let upload = store.begin_upload(&key, &options()).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"third").into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Exists);
    assert_eq!(read(store, &key, 0).await.unwrap(), b"first");

    // Of many at once, one wins and all the others know.
    let key = format!("{prefix}race");
    let bodies: Vec<Bytes> = (0..8u8).map(|i| vec![i; 1000].into()).collect();
    let (key, options) = (&key, &options());
    let puts = bodies.iter().map(async |body| (store.put(key, body.clone().into(), options).await.unwrap(), body));
    let ended = futures::future::join_all(puts).await;
    let winners: Vec<_> = ended.iter().filter(|(put, _)| *put == Put::Stored).collect();
    assert_eq!(winners.len(), 1, "{} of 8 were stored", winners.len());
    assert_eq!(read(store, key, 0).await.unwrap(), *winners[0].1);
}

async fn uploads_in_parts(store: &dyn Store, prefix: &str) {
    let key = format!("{prefix}a");
    let body = noise(2 * MIN_PART_SIZE_BYTES + 12345);
    let upload = store.begin_upload(&key, &options()).await.unwrap();
    let part = |number: u32| {
        let start = (number as usize - 1) * MIN_PART_SIZE_BYTES;
        let end = body.len().min(start + MIN_PART_SIZE_BYTES);
        upload.part(number, start as u64, body.slice(start..end).into())
    };
    part(3).await.unwrap();
    futures::future::try_join(part(1), part(2)).await.unwrap();
    part(2).await.unwrap(); // again
    assert_eq!(kind_of_get(store, &key).await, Kind::NotFound);
    assert!(list_all(store, prefix).await.unwrap().is_empty());
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    assert_eq!(upload.finish().await.unwrap(), Put::Stored, "asked again");
    assert_eq!(read(store, &key, 0).await.unwrap(), body);

    let key = format!("{prefix}aborted");
    let upload = store.begin_upload(&key, &options()).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(kind_of_get(store, &key).await, Kind::NotFound);
}

async fn reads_from_an_offset(store: &dyn Store, prefix: &str) {
    let key = format!("{prefix}a");
    let body = noise(1_500_000);
    store.put(&key, body.clone().into(), &options()).await.unwrap();
    for from in [0, 1, 262_144, 1_499_999, 1_500_000] {
        assert_eq!(read(store, &key, from as u64).await.unwrap(), body[from..], "from byte {from}");
        assert_eq!(store.get(&key, from as u64, None).await.unwrap().head.size, body.len() as u64, "from byte {from}");
    }
    assert!(store.get(&key, 1_500_001, None).await.is_err());
    let other = store.get(&key, 5, Some("\"0123456789abcdef0123456789abcdef\"")).await.map(drop);
    assert_eq!(other.unwrap_err().kind(), Kind::Changed);
}

async fn lists_in_byte_order(store: &dyn Store, prefix: &str) {
    let names =
        ["a", "a-b", "a.b", "a/b", "a/b-c", "a/b.d/e", "a/c", "a0", "b/x", "é"].map(|name| format!("{prefix}n{name}"));
    for name in names.iter().rev() {
        if name.ends_with("na") || name.ends_with("na/b") {
            continue; // A file system cannot have both "a" and "a/b".
        }
        store.put(name, Bytes::copy_from_slice(name.as_bytes()).into(), &options()).await.unwrap();
    }
    let mut expected: Vec<_> =
        names.iter().filter(|name| !name.ends_with("na") && !name.ends_with("na/b")).cloned().collect();
    expected.sort();
    let listed = list_all(store, prefix).await.unwrap();
    assert_eq!(listed.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), expected);
    assert!(listed.iter().all(|row| row.size == row.key.len() as u64));
    for (at, after) in expected.iter().enumerate() {
        let page = store.list(prefix, Some(after)).await.unwrap();
        let keys: Vec<_> = page.objects.iter().map(|row| row.key.clone()).collect();
        assert!(
            expected[at + 1..].starts_with(&keys) && (page.more || keys.len() == expected.len() - at - 1),
            "after {after}"
        );
    }
    // A prefix may end within a name, and need not be a directory.
    for start in ["na", "na/", "na/b", "na/b.", "na/b.d/", "nb", "n\u{e9}", "nz", "no/such/"] {
        let start = format!("{prefix}{start}");
        let keys: Vec<_> = list_all(store, &start).await.unwrap().into_iter().map(|row| row.key).collect();
        let wanted: Vec<_> = expected.iter().filter(|key| key.starts_with(&start)).cloned().collect();
        assert_eq!(keys, wanted, "prefix {start}");
    }
}

async fn deletes(store: &dyn Store, prefix: &str) {
    let key = format!("{prefix}a");
    store.put(&key, Bytes::from_static(b"one").into(), &options()).await.unwrap();
    store.delete(&key).await.unwrap();
    assert_eq!(kind_of_get(store, &key).await, Kind::NotFound);
    store.delete(&key).await.unwrap();
    assert_eq!(store.put(&key, Bytes::from_static(b"two").into(), &options()).await.unwrap(), Put::Stored);
    assert_eq!(read(store, &key, 0).await.unwrap(), b"two");
}

async fn keeps_odd_keys_apart(store: &dyn Store, prefix: &str) {
    let names = ["a+b", "a b", "a%20b", "a%2Bb", "a&b=c", "a?b", "a#b", "a:b;c,d@e$f!", "ä€😀", "~'()*", "%"];
    let keys = names.map(|name| format!("{prefix}{name}"));
    for key in &keys {
        assert_eq!(
            store.put(key, Bytes::copy_from_slice(key.as_bytes()).into(), &options()).await.unwrap(),
            Put::Stored,
            "{key}"
        );
    }
    for key in &keys {
        assert_eq!(read(store, key, 0).await.unwrap(), key.as_bytes());
        let rows = list_all(store, key).await.unwrap();
        assert_eq!(rows.first().map(|row| &row.key), Some(key));
    }
    let mut sorted = keys.to_vec();
    sorted.sort();
    let listed: Vec<_> = list_all(store, prefix).await.unwrap().into_iter().map(|row| row.key).collect();
    assert_eq!(listed, sorted);
    for key in &keys {
        store.delete(key).await.unwrap();
    }
    assert!(list_all(store, prefix).await.unwrap().is_empty());
}
