//! `--envdir DIR`: the environment in a directory, as daemontools' envdir reads it.
//!
//! The process starts itself again with the new environment, since other libraries read theirs from the process too. So the
//! option is looked for before the arguments are parsed, and has to be found wherever the parser would find it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells the process that was started again where its variables came from, so that rotated credentials can be read there.
pub(super) const SOURCE_VARIABLE: &str = "WAL_EVE_ENVDIR";

/// The command that this one stands for when its arguments name an envdir; none when they do not.
///
/// # Errors
/// When the directory cannot be read: a message for the user.
pub fn re_execution(args: &[OsString]) -> Result<Option<Command>, String> {
    let Some((directory, rest)) = split(args) else { return Ok(None) };
    let variables = read(&directory)?;
    let this = std::env::current_exe().map_err(|failed| format!("could not find the running program: {failed}"))?;
    let mut command = Command::new(this);
    // absolute, since a prefetcher works elsewhere
    command.args(rest).env(SOURCE_VARIABLE, std::path::absolute(&directory).map_err(unreadable(&directory))?);
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Ok(Some(command))
}

/// Takes the global option `--envdir` out of the arguments; the program's own name is dropped.
fn split(args: &[OsString]) -> Option<(PathBuf, Vec<OsString>)> {
    let mut rest = Vec::new();
    let mut directory = None;
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        let mut parts = arg.as_bytes().splitn(2, |byte| *byte == b'=');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next());
        if is_option(name) {
            directory = Some(match value {
                Some(value) => PathBuf::from(OsStr::from_bytes(value)),
                None => PathBuf::from(args.next()?),
            });
        } else {
            rest.push(arg.clone());
        }
    }
    directory.map(|directory| (directory, rest))
}

/// Whether it is the option, in full or abbreviated as far as no other option begins so.
fn is_option(name: &[u8]) -> bool {
    name.len() > "--".len() && b"--envdir".starts_with(name)
}

type Variables = Vec<(OsString, Option<OsString>)>;

/// Each file is a variable: its first line, without trailing blanks, with NUL for newline. An empty file unsets it. Hidden
/// files and names with `=` are left alone.
fn read(directory: &Path) -> Result<Variables, String> {
    let mut variables = Variables::new();
    for entry in fs::read_dir(directory).map_err(unreadable(directory))? {
        let entry = entry.map_err(unreadable(directory))?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") || name.as_bytes().contains(&b'=') || !entry.path().is_file() {
            continue;
        }
        if let Some(contents) = contents(&entry.path())? {
            variables.push((name, value(&contents)));
        }
    }
    Ok(variables)
}

/// A file's bytes; none when it is gone since the directory was listed: whoever rotates credentials may remove files.
fn contents(file: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(file) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|failed| format!("could not read \"{}\": {failed}", file.display())),
    }
}

fn unreadable(directory: &Path) -> impl Fn(io::Error) -> String {
    move |failed| format!("could not read the environment directory \"{}\": {failed}", directory.display())
}

fn value(contents: &[u8]) -> Option<OsString> {
    if contents.is_empty() {
        return None;
    }
    let line = contents.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let end = line.iter().rposition(|byte| !matches!(byte, b' ' | b'\t' | b'\r')).map_or(0, |at| at + 1);
    Some(OsString::from_vec(line[..end].iter().map(|byte| if *byte == 0 { b'\n' } else { *byte }).collect()))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::super::args::Cli;
    use super::*;

    #[test]
    fn values_are_envdirs() {
        for (contents, expected) in [
            ("v\n", Some("v")),
            ("v", Some("v")),
            ("v \t\nmore", Some("v")),
            ("", None),
            ("\n", Some("")),
            ("a\0b", Some("a\nb")),
        ] {
            assert_eq!(value(contents.as_bytes()).as_deref(), expected.map(OsStr::new), "{contents:?}");
        }
    }

    #[test]
    fn the_option_is_taken_out_wherever_it_stands() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for line in ["wal-e --envdir /e wal-push x", "wal-e --envdir=/e wal-push x", "wal-e wal-push --envdir /e x"] {
            assert_eq!(split(&args(line)), Some(("/e".into(), args("wal-push x"))), "{line}");
        }
        assert_eq!(split(&args("wal-e wal-push x")), None);
        assert_eq!(split(&args("wal-e --envdir")), None, "the parser refuses it");
    }

    /// What only the parser took for the option would be ignored in silence.
    #[test]
    fn it_is_taken_out_however_it_is_abbreviated() {
        let with = |option: &str| ["wal-e", option, "/e", "version"].map(OsString::from);
        for end in 0..="--envdir".len() {
            let option = &"--envdir"[..end];
            let parsed = Cli::try_parse_from(with(option)).is_ok_and(|cli| cli.global.envdir.is_some());
            assert_eq!(split(&with(option)).is_some(), parsed, "{option}");
            let joined = ["wal-e".into(), format!("{option}=/e").into(), "version".into()];
            assert_eq!(split(&joined), parsed.then(|| ("/e".into(), vec!["version".into()])), "{option}=");
        }
        // and nothing else is: no other option of any command begins so
        fn options(command: &clap::Command) -> Vec<String> {
            let own = command.get_arguments().filter_map(|option| Some(format!("--{}", option.get_long()?)));
            own.chain(command.get_subcommands().flat_map(options)).collect()
        }
        let options = options(&Cli::command());
        assert_eq!(options.iter().filter(|name| name.starts_with("--e")).collect::<Vec<_>>(), ["--envdir"]);
    }

    #[test]
    fn files_become_variables_and_hidden_ones_do_not() {
        let directory = tempfile::tempdir().unwrap();
        for (name, contents) in [("A", "1\n"), ("B", ""), (".C", "x"), ("D=E", "x")] {
            fs::write(directory.path().join(name), contents).unwrap();
        }
        fs::create_dir(directory.path().join("F")).unwrap();
        let mut variables = read(directory.path()).unwrap();
        variables.sort();
        assert_eq!(variables, [("A".into(), Some("1".into())), ("B".into(), None)]);
        let command = re_execution(&["wal-e".into(), "--envdir".into(), directory.path().into(), "version".into()]);
        let command = command.unwrap().unwrap();
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["version"]);
        assert!(command.get_envs().any(|(name, value)| name == "B" && value.is_none()));
        assert!(re_execution(&["wal-e".into(), "--envdir".into(), "/no/such".into()]).is_err());
    }

    #[test]
    fn a_file_that_is_gone_is_no_variable_and_one_that_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(contents(&directory.path().join("GONE")), Ok(None));
        // a directory can be opened and not be read
        let failed = contents(directory.path()).unwrap_err();
        assert!(failed.contains(&directory.path().display().to_string()), "{failed}");
    }

    #[test]
    fn a_relative_directory_is_found_again_from_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let to_root: PathBuf = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
        let relative = to_root.join(directory.path().strip_prefix("/").unwrap());
        let command = re_execution(&["wal-e".into(), "--envdir".into(), relative.into(), "version".into()]);
        let command = command.unwrap().unwrap();
        let (_, source) = command.get_envs().find(|(name, _)| *name == SOURCE_VARIABLE).unwrap();
        assert!(Path::new(source.unwrap()).is_absolute(), "{source:?}");
    }
}
