//! A port without a wire: whoever drives a simulation takes what was sent and delivers what shall arrive.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::{BindMode, Peer, PeerTable, Port, PortCounters, PortMode, Received, Refusal, TransmitError};
use crate::xsk::{Frame, FramePool};

/// A datagram on its way.
#[derive(Debug)]
pub struct Sent {
    /// Its data is the UDP payload.
    pub frame: Frame,
    /// Address it was sent from.
    pub source: SocketAddr,
    /// Address it is for.
    pub destination: SocketAddr,
}

/// A port whose wire is two bounded queues. Nothing in it depends on time, threads or chance.
#[derive(Debug)]
pub struct MemoryPort {
    queued: VecDeque<Sent>,
    sent: VecDeque<Sent>,
    arrived: VecDeque<Received>,
    bound: usize,
    peers: PeerTable<Peer>,
    counters: PortCounters,
}

impl MemoryPort {
    /// A port whose two directions each hold at most `bound` datagrams (at least 1).
    pub fn new(bound: usize) -> Self {
        let bound = bound.max(1);
        Self {
            queued: VecDeque::with_capacity(bound),
            sent: VecDeque::with_capacity(bound),
            arrived: VecDeque::with_capacity(bound),
            bound,
            peers: PeerTable::new(),
            counters: PortCounters::default(),
        }
    }

    /// The oldest datagram that was flushed and not taken yet.
    pub fn take_sent(&mut self) -> Option<Sent> {
        self.sent.pop_front()
    }

    /// Flushes to nobody: `pool` has the frames back at once. Returns as [`Port::flush`].
    pub fn flush_away(&mut self, pool: &mut FramePool) -> bool {
        let waits = self.flush(pool);
        self.sent.drain(..).for_each(|sent| pool.put(sent.frame));
        waits
    }

    /// Lets `datagram` arrive. One that finds the queue full is dropped and counted, as a device would do it.
    pub fn deliver(&mut self, datagram: Received) {
        if self.arrived.len() == self.bound {
            self.counters.rx_ring_full += 1;
        } else {
            self.arrived.push_back(datagram);
        }
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, _pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize {
        let count = max.min(out.capacity() - out.len()).min(self.arrived.len());
        out.extend(self.arrived.drain(..count));
        self.counters.rx += count as u64;
        count
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.peers.set(slot, peer);
    }

    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError> {
        let Some(peer) = self.peers.get(slot) else {
            self.counters.tx_unresolved += 1;
            return Err(TransmitError { frame, reason: Refusal::Unresolved });
        };
        if self.queued.len() + self.sent.len() >= self.bound {
            self.counters.tx_full += 1;
            return Err(TransmitError { frame, reason: Refusal::Full });
        }
        self.queued.push_back(Sent { frame, source: peer.local, destination: peer.remote });
        Ok(())
    }

    fn flush(&mut self, _pool: &mut FramePool) -> bool {
        self.counters.tx += self.queued.len() as u64;
        self.sent.append(&mut self.queued);
        false
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn mode(&self) -> PortMode {
        PortMode { xdp: None, bind: BindMode::Memory, socket: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xsk::Arena;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 7443))
    }

    fn peer() -> Peer {
        Peer { local: address(1), remote: address(2), macs: None, vlan: None }
    }

    #[test]
    fn a_datagram_leaves_with_the_flush_and_keeps_its_bytes() {
        let arena = Arena::anonymous(4).unwrap();
        let mut pool = FramePool::new(arena, 4);
        let (mut near, mut far) = (MemoryPort::new(4), MemoryPort::new(4));
        near.set_peer(3, Some(peer()));

        let mut frame = pool.take().unwrap();
        frame.data_mut().fill(7);
        near.transmit(3, frame).unwrap();
        assert!(near.take_sent().is_none());
        near.flush(&mut pool);
        let sent = near.take_sent().unwrap();
        assert_eq!((sent.source, sent.destination), (address(1), address(2)));
        far.deliver(Received { frame: sent.frame, source: sent.source });

        let mut out = Vec::with_capacity(1);
        assert_eq!(far.receive(&mut pool, &mut out, 32), 1);
        assert!(out[0].frame.data().iter().all(|byte| *byte == 7));
        assert_eq!(out[0].source, address(1));
        assert_eq!((near.counters().tx, far.counters().rx), (1, 1));
    }

    #[test]
    fn every_queue_is_bounded_and_says_so() {
        let arena = Arena::anonymous(8).unwrap();
        let mut pool = FramePool::new(arena, 8);
        let mut port = MemoryPort::new(2);
        let refused = port.transmit(0, pool.take().unwrap()).unwrap_err();
        assert_eq!(refused.reason, Refusal::Unresolved);
        port.set_peer(0, Some(peer()));
        port.transmit(0, refused.frame).unwrap();
        port.flush(&mut pool);
        port.transmit(0, pool.take().unwrap()).unwrap();
        assert_eq!(port.transmit(0, pool.take().unwrap()).unwrap_err().reason, Refusal::Full);

        for _ in 0..3 {
            port.deliver(Received { frame: pool.take().unwrap(), source: address(2) });
        }
        let mut out = Vec::with_capacity(1);
        assert_eq!(port.receive(&mut pool, &mut out, 32), 1);
        assert_eq!(port.receive(&mut pool, &mut out, 32), 0);
        let counters = port.counters();
        assert_eq!((counters.rx_ring_full, counters.tx_full, counters.tx_unresolved), (1, 1, 1));
        assert_eq!(out.capacity(), 1);
    }
}
