//! Runs a program in a clean environment, with its output captured and its time bounded.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A program with the environment and the limits to run it with.
#[derive(Debug, Clone)]
pub struct Tool {
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    stdin: Vec<u8>,
    timeout: Duration,
}

impl Tool {
    /// The environment is `PATH`, `HOME=/nonexistent`, `LC_ALL=C.UTF-8`, what profilers need, and what `environment`
    /// adds; no metadata service is asked for credentials.
    pub fn new<K: Into<OsString>, V: Into<OsString>>(
        program: impl Into<PathBuf>,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let mut tool = Self {
            program: program.into(),
            environment: Vec::new(),
            directory: None,
            stdin: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
        };
        for inherited in ["PATH", "LLVM_PROFILE_FILE", "ASAN_OPTIONS", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(inherited) {
                tool = tool.env(inherited, value);
            }
        }
        tool = tool.env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8").env("AWS_EC2_METADATA_DISABLED", "true");
        environment.into_iter().fold(tool, |tool, (name, value)| tool.env(name, value))
    }

    /// Sets a variable; a later one of the same name wins.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let name = name.into();
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.into()));
        self
    }

    pub fn env_remove(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What the program reads on its standard input; nothing by default.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long a run may take, output included, before it is killed and the test fails; 60 seconds by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs the program to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        self.spawn(arguments).wait()
    }

    /// Starts the program and returns at once. It is killed when the value is dropped.
    pub fn spawn<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear().envs(self.environment.iter().cloned());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = describe(&self.program, &command);
        let started = Instant::now();
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("could not start \"{}\": {error}", self.program.display()));
        if let Some(mut stdin) = child.stdin.take() {
            let bytes = self.stdin.clone();
            std::thread::spawn(move || stdin.write_all(&bytes));
        }
        let stdout = Capture::of(child.stdout.take().expect("stdout is piped"));
        let stderr = Capture::of(child.stderr.take().expect("stderr is piped"));
        Running { child, what, started, deadline: started + self.timeout, stdout, stderr }
    }
}

fn describe(program: &Path, command: &Command) -> String {
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// A program that was started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    started: Instant,
    deadline: Instant,
    stdout: Capture,
    stderr: Capture,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child is ours").is_none()
    }

    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).expect("the child is ours and has not been waited for");
        }
    }

    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
    }

    pub fn stdout_so_far(&self) -> String {
        self.stdout.text()
    }

    pub fn stderr_so_far(&self) -> String {
        self.stderr.text()
    }

    /// Waits for the end of the program and of its output, within the tool's timeout.
    ///
    /// Output that stays open after the program has ended belongs to a process it left behind: PostgreSQL would wait for
    /// that one too, so it fails the test.
    pub fn wait(mut self) -> Output {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                break status;
            }
            if Instant::now() > self.deadline {
                self.fail("did not end in time");
            }
            sleep(Duration::from_millis(2));
        };
        let elapsed = self.started.elapsed();
        if !self.stdout.wait_for_end(self.deadline) || !self.stderr.wait_for_end(self.deadline) {
            self.fail("has ended, but a process it started holds its output open");
        }
        Output {
            status,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.bytes(),
            elapsed,
            what: std::mem::take(&mut self.what),
        }
    }

    fn fail(&mut self, how: &str) -> ! {
        self.kill9();
        panic!(
            "{} {how} ({:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            self.started.elapsed(),
            self.stdout.text(),
            self.stderr.text()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill9();
            // Nothing is left to do with a child that cannot be waited for.
            let _ = self.child.wait();
        }
    }
}

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub elapsed: Duration,
    what: String,
}

impl Output {
    /// The exit status; None when a signal ended the program.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Panics with all output unless the program ended with exit status 0.
    #[track_caller]
    pub fn assert_success(self) -> Self {
        self.assert_code(0)
    }

    /// Panics with all output unless the program ended with this exit status.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            Some(code),
            "{} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            self.status,
            self.stdout_text(),
            self.stderr_text()
        );
        self
    }
}

/// A pipe's bytes, read by a thread so that the writer never waits.
#[derive(Debug, Clone)]
struct Capture {
    state: Arc<(Mutex<Captured>, Condvar)>,
}

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let state: Arc<(Mutex<Captured>, Condvar)> = Arc::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let length = pipe.read(&mut buffer).unwrap_or(0);
                let mut captured = shared.0.lock().unwrap();
                captured.bytes.extend_from_slice(&buffer[..length]);
                if length == 0 {
                    captured.ended = true;
                    shared.1.notify_all();
                    return;
                }
            }
        });
        Self { state }
    }

    fn bytes(&self) -> Vec<u8> {
        self.state.0.lock().unwrap().bytes.clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn wait_for_end(&self, deadline: Instant) -> bool {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let captured = self.state.0.lock().unwrap();
        let (captured, _) = self.state.1.wait_timeout_while(captured, remaining, |captured| !captured.ended).unwrap();
        captured.ended
    }
}
