//! What these tests share: the program, the lab, and an ordinary service beyond the exit.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) use relay_tests::program::relay_program;
use relay_tests::{Host, Lab, Nodes};

/// Time for all nodes to become ready.
pub(crate) const READY: Duration = Duration::from_secs(30);
/// Time that one test waits for the labs of others.
const LAB_PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of the file that [`Web`] serves.
const FILE_BYTES: u32 = 512 << 10;
/// What the service's content is full of; must never be readable on the wire.
pub(crate) const CANARY: &[u8] = b"three hops canary, never in the clear: ";

/// The lab, once no other test has it. Its fixed name lets a later run clear away what a killed one left.
pub(crate) fn lab() -> Lab {
    wide_lab(1)
}

/// The same, with so many queues on each host's wire.
pub(crate) fn wide_lab(queues: u32) -> Lab {
    let dir = Path::new("/run/evenwire-test");
    let until = Instant::now() + LAB_PATIENCE;
    loop {
        match Lab::build_wide("ewt-hops", dir, queues) {
            Ok(lab) => return lab,
            Err(error) if format!("{error:#}").contains("another lab") && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(error) => panic!("{error:#}"),
        }
    }
}

/// All nodes of a lab, ready.
pub(crate) fn running(lab: &Lab) -> Nodes<'_> {
    let mut nodes = Nodes::prepare(lab, relay_program()).expect("nodes");
    nodes.start_all(READY).expect("ready");
    nodes
}

/// Runs a program on a host to its end.
pub(crate) fn output(lab: &Lab, host: Host, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child =
        lab.spawn(host, &mut command).unwrap_or_else(|error| panic!("{program} is needed: {error:#}"));
    child.wait_with_output().expect("output")
}

/// Like [`output`]; the program must succeed, and what it printed is returned.
pub(crate) fn text(lab: &Lab, host: Host, program: &str, arguments: &[&str]) -> String {
    let output = output(lab, host, program, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A web server in the service's namespace that answers every request with one file.
pub(crate) struct Web {
    content: Vec<u8>,
}

impl Web {
    /// Serves for the rest of the process.
    pub(crate) fn start(lab: &Lab) -> Self {
        let listener =
            lab.netns(Host::Service).run(|| Ok(TcpListener::bind("198.51.100.80:80")?)).expect("listen");
        let mut content = Vec::new();
        for number in 0..FILE_BYTES / 256 {
            let start = content.len();
            content.extend_from_slice(CANARY);
            while content.len() < start + 256 {
                content.extend_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
            }
        }
        let served = content.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A client that went away in the middle is no concern of the next one.
                let _ = answer(stream, &served);
            }
        });
        Self { content }
    }

    /// Fetches the file from the client within `seconds`; `false` when that fails, panics when other bytes come.
    pub(crate) fn fetch(&self, lab: &Lab, seconds: &str) -> bool {
        let fetched = output(
            lab,
            Host::Client,
            "curl",
            &["--silent", "--fail", "--max-time", seconds, "http://198.51.100.80/"],
        );
        if fetched.status.success() {
            assert!(fetched.stdout == self.content, "the fetched bytes are not those that were served");
        }
        fetched.status.success()
    }
}

fn answer(mut stream: TcpStream, content: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 0 && !line.trim_end().is_empty() {
        line.clear();
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(content)
}
