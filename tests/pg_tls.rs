//! Encrypted connections to a real server: what is asked for is what happens, and what cannot be had is refused before a
//! backup is started.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use support::{Archive, Output, PgCluster, Program, Tool};
use wal_eve::pg::conninfo::Conninfo;
use wal_eve::pg::session::{Access, Session};
use wal_eve::pg::{Kind, PgError};

const PASSWORD: &str = "a pass'word";

/// A certificate authority in a directory of its own.
struct Authority(PathBuf);

impl Authority {
    fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap();
        let authority = Self(directory);
        authority.openssl(&format!("req -x509 {KEY} -keyout ca.key -out ca.crt -subj /CN=authority -days 2"));
        authority
    }

    fn openssl(&self, arguments: &str) {
        let tool = Tool::new("openssl", [("LC_ALL", "C")]).current_dir(&self.0);
        tool.run(arguments.split(' ')).assert_success();
    }

    /// Gives the cluster a certificate for the host name `localhost`, and for no address.
    fn certify(&self, data_dir: &Path) {
        fs::write(self.0.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
        self.openssl(&format!("req {KEY} -keyout server.key -out server.csr -subj /CN=localhost"));
        self.openssl(
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names -out server.crt -days 2",
        );
        for file in ["server.key", "server.crt"] {
            fs::copy(self.0.join(file), data_dir.join(file)).unwrap();
            fs::set_permissions(data_dir.join(file), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    fn root(&self) -> String {
        self.0.join("ca.crt").display().to_string()
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// A server that lets in over TCP who has the password, and over TLS only.
struct Site {
    archive: Archive,
    cluster: PgCluster,
    port: u16,
    authority: Authority,
    stranger: Authority,
}

impl Site {
    fn start() -> Self {
        let archive = Archive::file();
        let options = PgCluster::options().configure("archive_mode = on");
        let mut cluster = options.configure(archive.archive_command(Program::WalEve)).init(15);
        let authority = Authority::new(cluster.root().join("authority"));
        let stranger = Authority::new(cluster.root().join("stranger"));
        authority.certify(cluster.data_dir());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for line in ["listen_addresses = '127.0.0.1'", "ssl = on", "log_connections = on", "log_checkpoints = on"] {
            cluster.configure(line);
        }
        cluster.configure(&format!("port = {port}"));
        let hba = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(cluster.data_dir().join("pg_hba.conf"), hba).unwrap();
        cluster.start();
        let site = Self { archive, cluster, port, authority, stranger };
        site.psql(&format!("alter role postgres password '{}'", PASSWORD.replace('\'', "''")));
        site
    }

    fn psql(&self, sql: &str) {
        let psql = Tool::new(self.cluster.bin().program("psql"), self.cluster.environment());
        psql.env("PGPORT", self.port.to_string()).run(["-X", "-q", "-c", sql]).assert_success();
    }

    /// `backup-push` over TCP.
    fn push(&self, host: &str, variables: &[(&str, &str)]) -> Output {
        let wal_eve = self.archive.wal_eve().env("PGHOST", host).env("PGPORT", self.port.to_string());
        let wal_eve = wal_eve.env("PGUSER", "postgres").env("PGPASSWORD", PASSWORD);
        let wal_eve = variables.iter().fold(wal_eve, |wal_eve, (name, value)| wal_eve.env(*name, *value));
        wal_eve.run(["backup-push", self.cluster.data_dir().to_str().unwrap(), "--fast"])
    }

    /// A push that has to be refused before the server and the archive have noticed, with these words.
    fn refused(&self, host: &str, variables: &[(&str, &str)], words: &[&str]) {
        let text = self.push(host, variables).assert_code(1).stderr_text();
        assert!(words.iter().all(|word| text.contains(word)) && text.contains("HINT"), "{variables:?}: {text}");
        assert!(!text.contains(PASSWORD), "{text}");
        assert!(!self.cluster.log().contains("checkpoint starting: immediate force wait"), "no backup was started");
        assert_eq!(self.archive.backups(), [""; 0]);
    }

    fn conninfo(&self, host: &str, more: &str) -> Conninfo {
        let password = PASSWORD.replace('\'', "\\'");
        let port = self.port;
        let text = format!("host={host} port={port} dbname=postgres user=postgres password='{password}' {more}");
        Conninfo::parse(&text).unwrap()
    }

    async fn session(&self, host: &str, more: &str) -> Result<Session, PgError> {
        Session::connect(&self.conninfo(host, more).settings()?, Access::ReadOnly).await
    }
}

#[test]
fn a_backup_goes_over_the_encryption_that_is_asked_for() {
    let site = Site::start();
    let root = site.authority.root();
    let cases: [&[(&str, &str)]; 4] = [
        &[("PGSSLMODE", "require"), ("PGCHANNELBINDING", "prefer")],
        &[("PGCHANNELBINDING", "disable")],
        &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &root)],
        &[("PGSSLMODE", "require"), ("PGSSLROOTCERT", &root)],
    ];
    for (done, variables) in cases.into_iter().enumerate() {
        let before = site.cluster.log().len();
        site.push("localhost", variables).assert_success();
        assert_eq!(site.archive.backups().len(), done + 1);
        let log = site.cluster.log().split_off(before);
        let sessions: Vec<_> = log.lines().filter(|line| line.contains("application_name=wal-eve")).collect();
        assert!(!sessions.is_empty(), "{log}");
        assert!(sessions.iter().all(|line| line.contains("SSL enabled (protocol=TLSv1.3")), "{sessions:?}");
    }
}

#[test]
fn what_is_asked_for_and_cannot_be_had_is_refused_before_a_backup_starts() {
    let site = Site::start();
    let (root, another) = (site.authority.root(), site.stranger.root());
    let full = ("PGSSLMODE", "verify-full");
    let [root, another, absent] = [&*root, &*another, "/not/there"].map(|path| ("PGSSLROOTCERT", path));
    site.refused("localhost", &[full, another], &["invalid peer certificate", "PGSSLROOTCERT"]);
    site.refused("localhost", &[("PGSSLMODE", "require"), another], &["invalid peer certificate"]);
    site.refused("localhost", &[full], &["invalid peer certificate", "PGSSLROOTCERT"]);
    site.refused("127.0.0.1", &[full, root], &["not valid for name", "localhost", "name the host"]);
    site.refused("localhost", &[full, absent], &["\"/not/there\" does not exist"]);
    site.refused("localhost", &[("PGSSLMODE", "disable")], &["no encryption", "PGSSLMODE"]);
    site.refused("localhost", &[("PGPASSWORD", "another")], &["password authentication failed", "PGPASSWORD"]);

    let mut site = site;
    site.cluster.stop(support::Mode::Fast);
    site.cluster.configure("ssl = off");
    site.cluster.configure("log_checkpoints = off");
    site.cluster.start();
    site.refused("localhost", &[("PGSSLMODE", "require")], &["server does not support TLS", "ssl = on"]);
}

#[tokio::test]
async fn a_cutovers_sessions_heed_sslmode() {
    let site = Site::start();
    let (root, another) = (site.authority.root(), site.stranger.root());
    for more in [
        "sslmode=require channel_binding=prefer".to_owned(),
        format!("sslmode=verify-full sslrootcert={root}"),
        String::new(),
    ] {
        let mut session = site.session("localhost", &more).await.unwrap();
        let version: String =
            session.value("select version from pg_stat_ssl where pid = pg_backend_pid() and ssl").await.unwrap();
        assert_eq!(version, "TLSv1.3", "{more}");
        session.close().await;
    }
    for (host, more, words) in [
        ("localhost", format!("sslmode=verify-full sslrootcert={another}"), "invalid peer certificate"),
        ("localhost", format!("sslmode=require sslrootcert={another}"), "invalid peer certificate"),
        ("127.0.0.1", format!("sslmode=verify-full sslrootcert={root}"), "not valid for name"),
        ("localhost", "sslmode=verify-full sslrootcert=/not/there".to_owned(), "does not exist"),
    ] {
        let failed = site.session(host, &more).await.unwrap_err();
        assert_eq!(failed.kind(), Kind::Settings, "{more}");
        let text = wal_eve::formats::error_line::joined(&failed);
        assert!(text.contains(words), "{text}");
    }
    let failed = site.session("localhost", "sslmode=disable").await.unwrap_err();
    assert_eq!(failed.kind(), Kind::Server);
    assert!(failed.hint().unwrap().contains("hostssl"), "{failed:?}");
}
