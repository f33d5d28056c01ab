//! The service beyond the exit: a web server, a chat and a call that answer. Threads of this process whose sockets
//! belong to the service's namespace, so that nothing has to be started or ended for them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use relay_tests::Netns;

/// Port of the web server: `GET /N`, with any query, answers with N bytes.
pub(super) const WEB: u16 = 80;
/// Port of the chat, over TCP.
pub(super) const CHAT: u16 = 9001;
/// Port of the call, over UDP; it sends every datagram back.
pub(super) const VOICE: u16 = 9002;

/// Connections served at a time; further ones are closed at once.
const CONNECTIONS: usize = 64;
/// How often a thread that waits looks whether it should end.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of a request line or header line that are read at most.
const LINE_BYTES: u64 = 4096;
/// Bytes of a web answer that are written at a time.
const PART: usize = 16 << 10;
/// Bytes of the longest answer.
const ANSWER_BYTES: u64 = 1 << 32;

/// The running servers; dropping the value ends them.
#[derive(Debug)]
pub(super) struct Servers {
    stop: Arc<AtomicBool>,
    room: Arc<Room>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Listens at `address` in the namespace `service`.
    ///
    /// # Errors
    /// Where a port is taken.
    pub(super) fn start(service: &Netns, address: Ipv4Addr) -> Result<Self> {
        let (web, chat, voice) = service.run(|| {
            let at = |port| SocketAddr::from((address, port));
            let web = TcpListener::bind(at(WEB)).context("cannot listen for the web")?;
            let chat = TcpListener::bind(at(CHAT)).context("cannot listen for the chat")?;
            let voice = UdpSocket::bind(at(VOICE)).context("cannot listen for the call")?;
            voice.set_read_timeout(Some(LOOK_AGAIN))?;
            web.set_nonblocking(true)?;
            chat.set_nonblocking(true)?;
            Ok((web, chat, voice))
        })?;
        let room = Arc::new(Room::default());
        let mut servers =
            Self { stop: Arc::new(AtomicBool::new(false)), room: Arc::clone(&room), threads: Vec::new() };
        servers.thread("web", move |stop| accept(&web, stop, Arc::new(serve_web)))?;
        let serve = move |stream: TcpStream, stop: &AtomicBool| room.serve(stream, stop);
        servers.thread("chat", move |stop| accept(&chat, stop, Arc::new(serve)))?;
        servers.thread("voice", move |stop| answer_calls(&voice, stop))?;
        Ok(servers)
    }

    /// From now on, whether those who chat talk with each other, or each with the service.
    pub(super) fn let_talk(&self, together: bool) {
        self.room.together.store(together, Ordering::Relaxed);
    }

    fn thread(&mut self, name: &str, work: impl FnOnce(&Arc<AtomicBool>) + Send + 'static) -> Result<()> {
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&stop))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Serves one connection until it ends or the flag is set.
type Serve = Arc<dyn Fn(TcpStream, &AtomicBool) -> std::io::Result<()> + Send + Sync>;

/// Serves every connection on a thread of its own until `stop` is set; the threads end by themselves within a turn.
fn accept(listener: &TcpListener, stop: &Arc<AtomicBool>, serve: Serve) {
    let open = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        if open.load(Ordering::Relaxed) >= CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (open, stop, serve) = (Arc::clone(&open), Arc::clone(stop), Arc::clone(&serve));
        std::thread::spawn(move || {
            // A client that was killed in the middle is how most connections end here.
            prepare(&stream).and_then(|()| serve(stream, &stop)).ok();
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK_AGAIN))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))
}

/// Where a chat's messages go: back to who sent them, or to everybody else.
#[derive(Debug, Default)]
struct Room {
    together: AtomicBool,
    present: Mutex<Vec<TcpStream>>,
}

impl Room {
    fn serve(&self, mut stream: TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
        let own = stream.peer_addr()?;
        self.present().push(stream.try_clone()?);
        let outcome = self.pass_on(&mut stream, own, stop);
        self.present().retain(|one| one.peer_addr().is_ok_and(|address| address != own));
        outcome
    }

    fn pass_on(&self, stream: &mut TcpStream, own: SocketAddr, stop: &AtomicBool) -> std::io::Result<()> {
        let mut part = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let message = match stream.read(&mut part) {
                Ok(0) => break,
                Ok(count) => part.get(..count).unwrap_or_default(),
                Err(error) if is_timeout(&error) => continue,
                Err(error) => return Err(error),
            };
            let together = self.together.load(Ordering::Relaxed);
            for other in self.present().iter_mut() {
                if other.peer_addr().is_ok_and(|address| (address == own) != together) {
                    other.write_all(message)?;
                }
            }
        }
        Ok(())
    }

    fn present(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer_calls(socket: &UdpSocket, stop: &AtomicBool) {
    let mut datagram = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((count, from)) = socket.recv_from(&mut datagram) {
            socket.send_to(datagram.get(..count).unwrap_or_default(), from).ok();
        }
    }
}

/// Answers requests of one connection, one after another.
fn serve_web(stream: TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    let part = vec![0x55; PART];
    while let Some(path) = request(&mut requests, stop)? {
        let name = path.trim_start_matches('/').split('?').next().unwrap_or_default();
        let length = name.parse::<u64>().ok().filter(|&bytes| bytes <= ANSWER_BYTES);
        let Some(mut left) = length else {
            out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n")?;
        while left > 0 && !stop.load(Ordering::Relaxed) {
            let bytes = usize::try_from(left).unwrap_or(PART).min(PART);
            out.write_all(part.get(..bytes).unwrap_or_default())?;
            left -= bytes as u64;
        }
    }
    Ok(())
}

/// The path of the next request; `None` when there is none.
fn request(requests: &mut BufReader<TcpStream>, stop: &AtomicBool) -> std::io::Result<Option<String>> {
    let mut path = None;
    loop {
        let mut line = String::new();
        // Without a bound, one line could take all memory.
        while let Err(error) = requests.by_ref().take(LINE_BYTES).read_line(&mut line) {
            if !is_timeout(&error) {
                return Err(error);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        if line.is_empty() {
            return Ok(None);
        }
        match line.trim_end() {
            "" => return Ok(path),
            line => {
                let asked = line.strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
                path = path.or_else(|| asked.map(str::to_owned));
            }
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
