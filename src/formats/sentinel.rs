//! The sentinel of a complete base backup (`spec/wal-e-format.md` §1.5).

use serde_json::{Map, Value};

use super::python_json;

/// What a sentinel says. Fields that this version does not know are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentinel {
    /// The segment in which the backup stopped.
    pub stop_segment: String,
    /// The stop's offset in that segment: eight characters, decimal but for offline backups of WAL-E.
    pub stop_offset: String,
    /// The sum of the members' sizes in bytes; by WAL-E as planned, with files that had vanished when it came to them.
    pub expanded_size_bytes: u64,
    /// The data directory and tablespaces; absent up to WAL-E 0.6.
    pub spec: Option<Value>,
}

/// A sentinel that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SentinelError {
    /// Not JSON.
    #[error("the sentinel is not JSON")]
    NotJson(#[from] serde_json::Error),
    /// A field that is missing or of another type.
    #[error("the sentinel has no usable \"{0}\"")]
    Field(&'static str),
}

impl Sentinel {
    /// Reads a sentinel of any WAL-E that wrote storage version 005.
    pub fn from_json(bytes: &[u8]) -> Result<Self, SentinelError> {
        let fields: Map<String, Value> = serde_json::from_slice(bytes)?;
        let text = |key| fields.get(key).and_then(Value::as_str).map(str::to_owned).ok_or(SentinelError::Field(key));
        Ok(Self {
            stop_segment: text("wal_segment_backup_stop")?,
            stop_offset: text("wal_segment_offset_backup_stop")?,
            expanded_size_bytes: fields
                .get("expanded_size_bytes")
                .and_then(Value::as_u64)
                .ok_or(SentinelError::Field("expanded_size_bytes"))?,
            spec: fields.get("spec").filter(|spec| !spec.is_null()).cloned(),
        })
    }

    /// The text that WAL-E would write.
    pub fn to_json(&self) -> String {
        let mut fields = Map::new();
        fields.insert("wal_segment_backup_stop".into(), self.stop_segment.clone().into());
        fields.insert("wal_segment_offset_backup_stop".into(), self.stop_offset.clone().into());
        fields.insert("expanded_size_bytes".into(), self.expanded_size_bytes.into());
        if let Some(spec) = &self.spec {
            fields.insert("spec".into(), spec.clone());
        }
        python_json::to_string(&fields)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::restore_spec::{RestoreSpec, SpecTablespace};
    use super::*;

    const OBSERVED: &str = r#"{"wal_segment_backup_stop": "000000010000000000000002", "wal_segment_offset_backup_stop": "00000312", "expanded_size_bytes": 100173, "spec": {"base_prefix": "/var/lib/pgsql/data/", "tablespaces": ["16384"], "16384": {"loc": "/mnt/ts1/", "link": "pg_tblspc/16384"}}}"#;

    #[test]
    fn what_is_written_is_what_wal_e_writes() {
        // §12, vector 15
        let spec = RestoreSpec {
            base_prefix: Some("/var/lib/pgsql/data".into()),
            tablespaces: vec![SpecTablespace {
                name: "16384".into(),
                location: "/mnt/ts1".into(),
                link: "pg_tblspc/16384".into(),
            }],
        };
        let sentinel = Sentinel {
            stop_segment: "000000010000000000000002".into(),
            stop_offset: "00000312".into(),
            expanded_size_bytes: 100_173,
            spec: Some(spec.to_json()),
        };
        assert_eq!(sentinel.to_json(), OBSERVED);
        assert_eq!(Sentinel::from_json(OBSERVED.as_bytes()).unwrap(), sentinel);
    }

    #[test]
    fn sentinels_without_spec_or_with_more_are_read() {
        // §12, vectors 16 and 17
        let old = br#"{"wal_segment_backup_stop": "x", "wal_segment_offset_backup_stop": "y", "expanded_size_bytes": 1, "z": []}"#;
        assert_eq!(Sentinel::from_json(old).unwrap().spec, None);
        let bare = json!({"wal_segment_backup_stop": "x", "wal_segment_offset_backup_stop": "y", "expanded_size_bytes": 1, "spec": {"base_prefix": "/data/", "tablespaces": []}});
        assert!(Sentinel::from_json(bare.to_string().as_bytes()).unwrap().spec.is_some());
    }

    #[test]
    fn every_truncation_and_wrong_type_is_refused() {
        for end in 0..OBSERVED.len() {
            assert!(Sentinel::from_json(&OBSERVED.as_bytes()[..end]).is_err(), "accepted {end} bytes");
        }
        for (key, value) in [
            ("wal_segment_backup_stop", json!(1)),
            ("wal_segment_offset_backup_stop", json!(312)),
            ("expanded_size_bytes", json!("1")),
            ("expanded_size_bytes", json!(-1)),
        ] {
            let mut fields: Map<String, Value> = serde_json::from_str(OBSERVED).unwrap();
            fields.insert(key.into(), value);
            assert!(Sentinel::from_json(&serde_json::to_vec(&fields).unwrap()).is_err(), "accepted a wrong {key}");
        }
    }
}
