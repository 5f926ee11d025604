//! Where a backup's data directory and tablespaces lie: the sentinel's `spec` and the file given to `--restore-spec`
//! (`spec/wal-e-format.md` §1.5, §5.3).

use serde_json::{Map, Value};

/// One tablespace of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecTablespace {
    /// Its name below `pg_tblspc`: the OID as text.
    pub name: String,
    /// The directory that the link points to, as recorded: WAL-E writes a trailing slash.
    pub location: String,
    /// The link's path relative to the data directory: `pg_tblspc/<name>`.
    pub link: String,
}

/// A parsed `spec`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreSpec {
    /// The data directory; absent or empty leaves it to the command line.
    pub base_prefix: Option<String>,
    /// The tablespaces, in the order listed.
    pub tablespaces: Vec<SpecTablespace>,
}

/// A `spec` that does not hold together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreSpecError {
    /// Not a JSON object at all.
    #[error("the restore specification is not a JSON object")]
    NotAnObject,
    /// A field of the wrong type.
    #[error("\"{0}\" in the restore specification should be {1}")]
    WrongType(String, &'static str),
    /// A listed tablespace without its own entry.
    #[error("tablespace \"{0}\" is listed in the restore specification but not described")]
    MissingTablespace(String),
    /// A link that is not `pg_tblspc/<name>`, or a name with a slash in it.
    #[error("the link \"{0}\" in the restore specification is not directly under pg_tblspc")]
    BadLink(String),
    /// A tablespace's directory that is not absolute.
    #[error("the location \"{0}\" in the restore specification is not an absolute path")]
    RelativeLocation(String),
}

impl RestoreSpec {
    /// Reads `base`, with the top-level keys of `overrides` replacing its own as WAL-E merges them.
    pub fn from_json(base: &Value, overrides: Option<&Value>) -> Result<Self, RestoreSpecError> {
        let mut merged = object(base)?.clone();
        if let Some(overrides) = overrides {
            merged.extend(object(overrides)?.clone());
        }
        let base_prefix = base_prefix(&merged)?;
        let names = match merged.get("tablespaces") {
            None => &Vec::new(),
            Some(Value::Array(names)) => names,
            Some(_) => return Err(RestoreSpecError::WrongType("tablespaces".into(), "an array")),
        };
        let tablespaces = names.iter().map(|name| tablespace(&merged, name)).collect::<Result<_, _>>()?;
        Ok(Self { base_prefix, tablespaces })
    }

    /// The data directory that `spec` names, whatever else it holds.
    pub fn base_prefix_of(spec: &Value) -> Result<Option<String>, RestoreSpecError> {
        base_prefix(object(spec)?)
    }

    /// The JSON that WAL-E would write: key order and trailing slashes included.
    pub fn to_json(&self) -> Value {
        let with_slash = |path: &str| Value::from(format!("{}/", path.trim_end_matches('/')));
        let mut spec = Map::new();
        spec.insert("base_prefix".into(), with_slash(self.base_prefix.as_deref().unwrap_or_default()));
        spec.insert("tablespaces".into(), self.tablespaces.iter().map(|space| space.name.clone()).collect());
        for space in &self.tablespaces {
            let mut entry = Map::new();
            entry.insert("loc".into(), with_slash(&space.location));
            entry.insert("link".into(), space.link.clone().into());
            spec.insert(space.name.clone(), entry.into());
        }
        spec.into()
    }
}

fn object(value: &Value) -> Result<&Map<String, Value>, RestoreSpecError> {
    value.as_object().ok_or(RestoreSpecError::NotAnObject)
}

fn base_prefix(spec: &Map<String, Value>) -> Result<Option<String>, RestoreSpecError> {
    match spec.get("base_prefix") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(RestoreSpecError::WrongType("base_prefix".into(), "a string")),
    }
}

fn tablespace(spec: &Map<String, Value>, name: &Value) -> Result<SpecTablespace, RestoreSpecError> {
    let name = name.as_str().ok_or_else(|| RestoreSpecError::WrongType("tablespaces".into(), "an array of strings"))?;
    let entry = spec.get(name).and_then(Value::as_object);
    let entry = entry.ok_or_else(|| RestoreSpecError::MissingTablespace(name.into()))?;
    let field = |key: &str| {
        let text = entry.get(key).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| RestoreSpecError::WrongType(format!("{name}.{key}"), "a string"))
    };
    let (location, link) = (field("loc")?, field("link")?);
    let well_formed = !matches!(name, "" | "." | "..") && !name.contains('/');
    if !well_formed || link.trim_end_matches('/') != format!("pg_tblspc/{name}") {
        return Err(RestoreSpecError::BadLink(link));
    }
    if !location.starts_with('/') {
        return Err(RestoreSpecError::RelativeLocation(location));
    }
    Ok(SpecTablespace { name: name.to_owned(), location, link })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_replaces_top_level_keys_of_the_sentinels_spec() {
        let base = json!({"base_prefix": "/old/", "tablespaces": ["1", "2"], "1": {"loc": "/a/", "link": "pg_tblspc/1"}, "2": {"loc": "/b/", "link": "pg_tblspc/2"}});
        let merged = RestoreSpec::from_json(
            &base,
            Some(&json!({"1": {"loc": "/new/", "link": "pg_tblspc/1"}, "base_prefix": "/new/data"})),
        )
        .unwrap();
        assert_eq!(merged.base_prefix.as_deref(), Some("/new/data"));
        let locations: Vec<_> = merged.tablespaces.iter().map(|space| space.location.as_str()).collect();
        assert_eq!(locations, ["/new/", "/b/"]);
    }

    #[test]
    fn specs_without_tablespaces_or_prefix_are_read() {
        let spec = RestoreSpec::from_json(&json!({"base_prefix": "/data/", "tablespaces": []}), None).unwrap();
        assert_eq!(spec, RestoreSpec { base_prefix: Some("/data/".into()), tablespaces: vec![] });
        assert_eq!(RestoreSpec::from_json(&json!({"base_prefix": ""}), None).unwrap(), RestoreSpec::default());
    }

    #[test]
    fn a_spec_that_would_write_elsewhere_is_refused() {
        for bad in [
            json!([]),
            json!({"base_prefix": 1}),
            json!({"tablespaces": "16384"}),
            json!({"tablespaces": [16384]}),
            json!({"tablespaces": ["16384"]}),
            json!({"tablespaces": ["1"], "1": {"loc": "/a"}}),
            json!({"tablespaces": ["1"], "1": {"loc": "/a", "link": "../1"}}),
            json!({"tablespaces": ["1"], "1": {"loc": "/a", "link": "pg_tblspc/2"}}),
            json!({"tablespaces": [".."], "..": {"loc": "/a", "link": "pg_tblspc/.."}}),
            json!({"tablespaces": ["1"], "1": {"loc": "a", "link": "pg_tblspc/1"}}),
        ] {
            assert!(RestoreSpec::from_json(&bad, None).is_err(), "accepted {bad}");
        }
    }
}
