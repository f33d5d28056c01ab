//! First-in-first-out queues that share one store: an empty queue costs twelve bytes, and all together never hold more
//! than the store has room for.

const NIL: u32 = u32::MAX;

/// One queue; its items are in the [`Store`] that all its calls name.
#[derive(Debug)]
pub(super) struct Queue {
    first: u32,
    last: u32,
    len: u32,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self { first: NIL, last: NIL, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[derive(Debug)]
struct Node<T> {
    item: Option<T>,
    next: u32,
}

/// Room for the items of many queues, allocated once.
#[derive(Debug)]
pub(super) struct Store<T> {
    nodes: Vec<Node<T>>,
    free: u32,
}

impl<T> Store<T> {
    /// Room for `capacity` items in all.
    pub(super) fn new(capacity: usize) -> Self {
        let count = u32::try_from(capacity).expect("fewer items than a u32 numbers");
        let next = |number: u32| if number + 1 == count { NIL } else { number + 1 };
        let nodes = (0..count).map(|number| Node { item: None, next: next(number) }).collect();
        Self { nodes, free: if count == 0 { NIL } else { 0 } }
    }

    /// Appends `item`, or gives it back where the store is full.
    #[inline]
    pub(super) fn push(&mut self, queue: &mut Queue, item: T) -> Result<(), T> {
        let number = self.free;
        let Some(node) = self.nodes.get_mut(number as usize) else { return Err(item) };
        self.free = node.next;
        *node = Node { item: Some(item), next: NIL };
        match queue.last {
            NIL => queue.first = number,
            last => self.nodes[last as usize].next = number,
        }
        queue.last = number;
        queue.len += 1;
        Ok(())
    }

    /// Takes the oldest item of `queue`.
    #[inline]
    pub(super) fn pop(&mut self, queue: &mut Queue) -> Option<T> {
        let number = queue.first;
        let node = self.nodes.get_mut(number as usize)?;
        queue.first = node.next;
        if queue.first == NIL {
            queue.last = NIL;
        }
        queue.len -= 1;
        node.next = self.free;
        self.free = number;
        node.item.take()
    }

    /// Drops all items of `queue`; returns how many of them `count` says yes to.
    pub(super) fn clear(&mut self, queue: &mut Queue, count: impl Fn(&T) -> bool) -> usize {
        std::iter::from_fn(|| self.pop(queue)).filter(count).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn agrees_with_a_deque(steps in prop::collection::vec((0u8..8, 0usize..3), 0..300)) {
            let mut store = Store::new(7);
            let mut queues = [Queue::new(), Queue::new(), Queue::new()];
            let mut model: [VecDeque<usize>; 3] = Default::default();
            for (number, (step, at)) in steps.into_iter().enumerate() {
                match step {
                    0..4 => {
                        let full = model.iter().map(VecDeque::len).sum::<usize>() == 7;
                        let pushed = store.push(&mut queues[at], number);
                        prop_assert_eq!(pushed, if full { Err(number) } else { Ok(()) });
                        if !full {
                            model[at].push_back(number);
                        }
                    }
                    4..7 => prop_assert_eq!(store.pop(&mut queues[at]), model[at].pop_front()),
                    _ => {
                        let odd = model[at].drain(..).filter(|item| item % 2 == 1).count();
                        prop_assert_eq!(store.clear(&mut queues[at], |item| item % 2 == 1), odd);
                    }
                }
                for (queue, items) in queues.iter().zip(&model) {
                    prop_assert_eq!((queue.len(), queue.is_empty()), (items.len(), items.is_empty()));
                }
            }
        }
    }
}
