//! Whether the server whose `restore_command` runs is a standby: it decides which exit status is safe
//! (`design.md`, "Exit status").

use std::fs;
use std::io;
use std::path::Path;

use super::data_directory::DataDirectory;
use super::recovery_process::recovery_process;

/// What kind of recovery a data directory is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Standby mode: the server asks again and again, and any failure up to status 125 is harmless.
    Standby,
    /// Recovery that ends, and promotes, at the first file that is not available.
    Recovery,
    /// A promotion that is almost done. The server has removed its signal file (up to 11: renamed `recovery.conf`), and asks
    /// for its old timeline's history, to write the new one's. Stopped now, it would start as a primary on the old timeline.
    Promotion,
    /// It cannot be told, which has to count as [`RecoveryMode::Recovery`].
    Unknown,
}

impl RecoveryMode {
    /// Looks into the data directory. `standby.signal` wins over `recovery.signal`, as in the server; up to 11
    /// `standby_mode` in `recovery.conf` decides. Without any of them, the server that runs there is being promoted: only
    /// archive recovery asks for files.
    pub fn of(directory: &DataDirectory) -> Self {
        let path = directory.path();
        if directory.major().uses_recovery_conf() {
            return match fs::read(path.join("recovery.conf")) {
                Ok(text) => Self::from_recovery_conf(&text),
                Err(absent) if absent.kind() == io::ErrorKind::NotFound => Self::without_signal(directory),
                Err(_) => Self::Unknown,
            };
        }
        let signals = ["standby.signal", "recovery.signal"].map(|name| exists(&path.join(name)));
        match signals {
            [Some(true), _] => Self::Standby,
            [Some(false), Some(true)] => Self::Recovery,
            [Some(false), Some(false)] => Self::without_signal(directory),
            _ => Self::Unknown,
        }
    }

    fn without_signal(directory: &DataDirectory) -> Self {
        if recovery_process(directory).is_some() { Self::Promotion } else { Self::Unknown }
    }

    /// Reads the content of a `recovery.conf`: the last `standby_mode` counts, and the default is off.
    pub fn from_recovery_conf(text: &[u8]) -> Self {
        let mut standby_mode = false;
        for line in text.split(|b| *b == b'\n') {
            // The server would not have started on a line that it cannot read, and may have found anything in an
            // included file.
            let Some(setting) = Setting::parse(line) else { return Self::Unknown };
            match setting {
                Setting::None => {}
                Setting::Some { name, .. } if name.starts_with("include") => return Self::Unknown,
                Setting::Some { name, value } if name == "standby_mode" => match parse_bool(&value) {
                    Some(on) => standby_mode = on,
                    None => return Self::Unknown,
                },
                Setting::Some { .. } => {}
            }
        }
        if standby_mode { Self::Standby } else { Self::Recovery }
    }

    /// Whether the server will ask again whatever the command's status up to 125 is.
    pub fn is_standby(self) -> bool {
        self == Self::Standby
    }
}

/// Whether `path` exists, following links as the server's `stat` does; none when that cannot be told.
fn exists(path: &Path) -> Option<bool> {
    path.try_exists().ok()
}

/// One line of a configuration file.
enum Setting {
    /// Empty, or a comment.
    None,
    /// A name in lower case and its value, unquoted.
    Some { name: String, value: Vec<u8> },
}

impl Setting {
    /// Reads `name [=] value [# comment]`; none when the line is not that.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = line.trim_ascii();
        if line.is_empty() || line[0] == b'#' {
            return Some(Self::None);
        }
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$') || *b >= 0x80;
        let end = line.iter().position(|b| !is_name(b)).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        if name.is_empty() || name[0].is_ascii_digit() {
            return None;
        }
        let rest = rest.trim_ascii_start();
        let rest = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii_start();
        let (value, rest) = match rest.strip_prefix(b"'") {
            Some(quoted) => quoted_value(quoted)?,
            None => {
                let is_value = |b: &u8| is_name(b) || matches!(b, b'-' | b'+' | b':' | b'/');
                let end = rest.iter().position(|b| !is_value(b)).unwrap_or(rest.len());
                (rest[..end].to_vec(), &rest[end..])
            }
        };
        let rest = rest.trim_ascii_start();
        let ends_here = rest.is_empty() || rest[0] == b'#';
        let has_value = !value.is_empty() || line.contains(&b'\'');
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        (ends_here && has_value).then_some(Self::Some { name, value })
    }
}

/// Reads up to the closing quote; `''` and `\'` stand for a quote. Gives the value and what follows it.
fn quoted_value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        match rest {
            [b'\'', b'\'', after @ ..] | [b'\\', b'\'', after @ ..] => {
                value.push(b'\'');
                rest = after;
            }
            [b'\'', after @ ..] => return Some((value, after)),
            [b'\\', escaped, after @ ..] => {
                // Other escapes make no boolean; it is enough to get past them.
                value.extend([b'\\', *escaped]);
                rest = after;
            }
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

/// PostgreSQL's boolean: `true`, `false`, `yes`, `no` and their beginnings, `on`, `off`, `of`, `1`, `0`, in any case.
fn parse_bool(value: &[u8]) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let is = |word: &str, least: usize| value.len() >= least && word.as_bytes().starts_with(&value);
    if is("true", 1) || is("yes", 1) || is("on", 2) || is("1", 1) {
        return Some(true);
    }
    (is("false", 1) || is("no", 1) || is("off", 2) || is("0", 1)).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(text: &str) -> RecoveryMode {
        RecoveryMode::from_recovery_conf(text.as_bytes())
    }

    #[test]
    fn every_way_to_write_on_is_a_standby() {
        for value in ["on", "ON", "'on'", "true", "t", "'TRU'", "yes", "y", "1", "'1'", "on # yes", "'on'#"] {
            for text in [
                format!("standby_mode = {value}"),
                format!("\tSTANDBY_MODE={value}\r"),
                format!("standby_mode {value}\n"),
            ] {
                assert_eq!(mode(&text), RecoveryMode::Standby, "{text:?}");
            }
        }
    }

    #[test]
    fn off_or_nothing_is_recovery() {
        for value in ["off", "of", "'off'", "false", "f", "no", "n", "0"] {
            assert_eq!(mode(&format!("standby_mode = {value}\n")), RecoveryMode::Recovery, "{value}");
        }
        for text in
            ["", "# standby_mode = on\n", "restore_command = 'wal-eve wal-fetch \"%f\" \"%p\"'\n", "xstandby_mode = on"]
        {
            assert_eq!(mode(text), RecoveryMode::Recovery, "{text:?}");
        }
    }

    #[test]
    fn the_last_one_wins_and_quotes_hide_nothing() {
        assert_eq!(mode("standby_mode = on\nstandby_mode = off\n"), RecoveryMode::Recovery);
        assert_eq!(mode("standby_mode = off\nstandby_mode = on"), RecoveryMode::Standby);
        let text = "restore_command = 'x '' # \\' standby_mode = off'\nstandby_mode = on\n";
        assert_eq!(mode(text), RecoveryMode::Standby);
        assert_eq!(mode("restore_command = '\nstandby_mode = on'"), RecoveryMode::Unknown, "no value spans lines");
    }

    #[test]
    fn what_the_server_would_not_accept_is_unknown() {
        for value in ["", "o", "'o'", "2", "onn", "'on", "on off", "''", "ye s", "truee", "'on\\n'", "= on", "o'n'"] {
            assert_eq!(mode(&format!("standby_mode = {value}")), RecoveryMode::Unknown, "{value:?}");
        }
        for text in ["standby_mode", "= on", "1x = 2", "include 'more.conf'", "include_if_exists = 'more.conf'", "!"] {
            assert_eq!(mode(text), RecoveryMode::Unknown, "{text:?}");
        }
    }

    #[test]
    fn signal_files_decide_from_12_on() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join("PG_VERSION"), "12\n").unwrap();
        fs::write(data.path().join("recovery.conf"), "standby_mode = on\n").unwrap();
        let directory = DataDirectory::open(data.path()).unwrap();
        assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Unknown, "recovery.conf means nothing here");
        fs::write(data.path().join("recovery.signal"), "").unwrap();
        assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Recovery);
        fs::write(data.path().join("standby.signal"), "").unwrap();
        assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Standby);
    }

    #[test]
    fn a_running_server_without_a_signal_is_being_promoted() {
        for (major, signal) in [("11\n", "recovery.conf"), ("12\n", "recovery.signal")] {
            let data = tempfile::tempdir().unwrap();
            fs::write(data.path().join("PG_VERSION"), major).unwrap();
            let directory = DataDirectory::open(data.path()).unwrap();
            let pid_file = data.path().join("postmaster.pid");
            // no process has this number: the largest that Linux gives is 2^22
            fs::write(&pid_file, "4194999\n").unwrap();
            assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Unknown, "it is no server's");
            fs::write(&pid_file, format!("{}\n", std::os::unix::process::parent_id())).unwrap();
            assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Promotion);
            fs::write(data.path().join(signal), "").unwrap();
            assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Recovery);
        }
    }

    #[test]
    fn recovery_conf_decides_up_to_11() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join("PG_VERSION"), "11\n").unwrap();
        fs::write(data.path().join("standby.signal"), "").unwrap();
        let directory = DataDirectory::open(data.path()).unwrap();
        assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Unknown, "a crash's recovery asks no archive");
        fs::write(data.path().join("recovery.conf"), "standby_mode = 'on'\n").unwrap();
        assert_eq!(RecoveryMode::of(&directory), RecoveryMode::Standby);
    }
}
