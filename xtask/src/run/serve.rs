//! The ordinary web server beyond the exit, and the bytes it serves.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};

/// Bytes of `/file`: 16 MiB.
pub(crate) const FILE_BYTES: usize = 16 << 20;
/// Bytes of `/small`: an ordinary small answer.
const SMALL_BYTES: usize = 4 << 10;
/// What every block of the content begins with; must never be readable on the wire.
pub(crate) const CANARY: &[u8] = b"evenwire lab canary, never in the clear: ";
/// Shorter than what any cell carries, so that a cell in the clear would show a whole canary.
const BLOCK: usize = 256;

/// Connections served at a time; further ones are closed at once.
const CONNECTIONS: usize = 32;
/// Bytes of a request that are read at most.
const REQUEST_BYTES: u64 = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `cargo xtask serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address and port to listen on
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let listener =
        TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let file: Arc<[u8]> = content(FILE_BYTES).into();
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept a connection")?;
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (file, open) = (Arc::clone(&file), Arc::clone(&open));
        std::thread::spawn(move || {
            if let Err(error) = answer(stream, &file) {
                eprintln!("connection ended early: {error:#}");
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

/// The same bytes each time, none of its blocks like another.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(bytes + BLOCK);
    let mut number = 0u64;
    while content.len() < bytes {
        content.extend_from_slice(CANARY);
        let filler = (BLOCK - CANARY.len()) / 16 + 1;
        for part in 0..filler as u64 {
            let mixed = (number * 31 + part + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            write!(content, "{mixed:016x}").ok();
        }
        number += 1;
    }
    content.truncate(bytes);
    content
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

fn answer(mut stream: TcpStream, file: &[u8]) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = BufReader::new(stream.try_clone()?.take(REQUEST_BYTES));
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut header = String::new();
    while request.read_line(&mut header)? > 0 && header.trim_end() != "" {
        header.clear();
    }
    let path = first.strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
    let (status, body) = match path {
        Some("/file") => ("200 OK", file),
        Some("/small") => ("200 OK", &file[..SMALL_BYTES]),
        Some(_) => ("404 Not Found", &b"there is /file and /small\n"[..]),
        None => ("405 Method Not Allowed", &b"only GET\n"[..]),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_repeatable_and_shows_the_canary_in_any_cellful() {
        let bytes = content(10_000);
        assert_eq!(bytes.len(), 10_000);
        assert_eq!(sha256(&bytes), sha256(&content(20_000)[..10_000]));
        for window in bytes.windows(600).step_by(97) {
            assert!(window.windows(CANARY.len()).any(|part| part == CANARY));
        }
    }
}
