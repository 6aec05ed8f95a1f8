//! Which shard of a Redis Cluster has which slot.
use std::collections::HashSet;
use std::sync::Arc;

use super::Shard;
use super::primary::Primary;
use super::slots::{SLOTS, View, slot};
use crate::config::RedisNode;

/// No shard has the slot.
const NOBODY: u16 = u16::MAX;

#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    shards: Vec<(RedisNode, Shard)>,
    /// For each slot, the place in `shards`, or [`NOBODY`]. Empty until the layout has been read.
    slots: Vec<u16>,
}

impl Map {
    /// The map of a layout. `member` gives the connections to a server.
    pub(super) fn of(view: &View, member: impl Fn(&RedisNode) -> Arc<Primary>) -> Self {
        let mut map = Self { shards: Vec::new(), slots: vec![NOBODY; usize::from(SLOTS)] };
        for (first, last, node) in &view.ranges {
            let place = map.place_of(node).unwrap_or_else(|| map.add(node, member(node)));
            if let (Some(range), Ok(place)) =
                (map.slots.get_mut(usize::from(*first)..=usize::from(*last)), u16::try_from(place))
            {
                range.fill(place);
            }
        }
        map.find_tags();
        map
    }

    /// Whether no layout has been read yet.
    pub(super) fn is_unknown(&self) -> bool {
        self.slots.is_empty()
    }

    /// The shard that has a slot.
    pub(super) fn shard(&self, slot: u16) -> Option<&Shard> {
        self.shards.get(usize::from(*self.slots.get(usize::from(slot))?)).map(|(_, shard)| shard)
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().map(|(_, shard)| shard)
    }

    /// The primaries' addresses.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &RedisNode> {
        self.shards.iter().map(|(node, _)| node)
    }

    /// How many slots no shard has.
    pub(super) fn uncovered(&self) -> usize {
        self.slots.iter().filter(|&&place| place == NOBODY).count()
    }

    /// Whether this server has the slot.
    pub(super) fn has(&self, slot: u16, node: &RedisNode) -> bool {
        let place = self.slots.get(usize::from(slot)).map(|&place| usize::from(place));
        place.is_some() && place == self.place_of(node)
    }

    /// Gives a slot to a server. Before a layout has been read, it only adds the server.
    pub(super) fn assign(&mut self, slot: u16, node: &RedisNode, member: Arc<Primary>) {
        let place = self.place_of(node).unwrap_or_else(|| self.add(node, member));
        if let (Some(slot), Ok(place)) = (self.slots.get_mut(usize::from(slot)), u16::try_from(place)) {
            *slot = place;
        }
    }

    fn place_of(&self, node: &RedisNode) -> Option<usize> {
        self.shards.iter().position(|(known, _)| known == node)
    }

    fn add(&mut self, node: &RedisNode, member: Arc<Primary>) -> usize {
        self.shards.push((node.clone(), Shard { primary: member, tag: String::new() }));
        self.shards.len() - 1
    }

    /// Finds a hash tag for each shard, that is, a text between braces that puts a key into one of its slots.
    fn find_tags(&mut self) {
        let mut missing: HashSet<u16> = self.slots.iter().copied().filter(|&place| place != NOBODY).collect();
        // If the shards are about equal in size, one number in as many as there are shards fits.
        for number in 0..1_000_000 {
            if missing.is_empty() {
                return;
            }
            let tag = format!("probe{number}");
            let place = self.slots[usize::from(slot(tag.as_bytes()))];
            if missing.remove(&place) {
                self.shards[usize::from(place)].1.tag = tag;
            }
        }
    }
}
