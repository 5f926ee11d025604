//! The process's environment, as the one place that reads it.

use std::ffi::OsString;
use std::path::PathBuf;

/// Looks variables up. An empty one counts as unset, as it does for WAL-E's prefixes.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    variables: Vec<(OsString, OsString)>,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        Self { variables: std::env::vars_os().collect() }
    }

    /// The value of `name`, unless it is unset, empty or no text.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.raw(name)?.clone().into_string().ok().filter(|value| !value.is_empty())
    }

    /// Whether `name` is set at all, also to nothing.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    /// The path in `name`, unless it is unset or empty.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.raw(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// A boolean as WAL-E reads one: unset, empty, `0` and `false` are no, `1` and `true` yes, in any case; anything else is
    /// neither (`spec/wal-e-format.md` §8.1).
    pub(super) fn boolean(&self, name: &str) -> Result<bool, String> {
        match self.text(name).unwrap_or_default().to_ascii_lowercase().as_str() {
            "" | "0" | "false" => Ok(false),
            "1" | "true" => Ok(true),
            other => Err(format!("{name} is \"{other}\"; it should be 1, true, 0 or false")),
        }
    }

    /// Every variable whose name `applies`, by name.
    pub(super) fn select(&self, applies: impl Fn(&str) -> bool) -> Vec<&(OsString, OsString)> {
        let applies = |name: &OsString| name.to_str().is_some_and(&applies);
        let mut selected: Vec<_> = self.variables.iter().filter(|(name, _)| applies(name)).collect();
        selected.sort();
        selected
    }

    fn raw(&self, name: &str) -> Option<&OsString> {
        self.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self { variables: variables.map(|(key, value)| (key.into(), value.into())).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_wal_es() {
        // §12, vector 39
        for (value, expected) in
            [("1", true), ("true", true), ("TRUE", true), ("", false), ("0", false), ("false", false), ("FALSE", false)]
        {
            assert_eq!(Environment::from([("B", value)]).boolean("B"), Ok(expected), "{value}");
        }
        assert_eq!(Environment::default().boolean("B"), Ok(false));
        assert!(Environment::from([("B", "maybe")]).boolean("B").is_err());
    }

    #[test]
    fn empty_counts_as_unset() {
        let environment = Environment::from([("A", ""), ("B", "b")]);
        assert_eq!(
            (environment.text("A"), environment.text("B"), environment.text("C")),
            (None, Some("b".into()), None)
        );
        assert!(environment.is_set("A") && !environment.is_set("C"));
    }
}
