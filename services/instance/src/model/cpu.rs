//! Which CPUs a guest with `limits.cpu` set to a number gets: always the least used ones.

use std::collections::HashMap;

use super::value::CpuLimit;

/// How many guests are on each CPU, and who is where.
#[derive(Debug)]
pub struct CpuBalance {
    /// CPU number and guests on it, in the order of numbers.
    load: Vec<(u32, usize)>,
    /// By instance uid.
    placed: HashMap<String, Placement>,
}

#[derive(Debug, Clone)]
struct Placement {
    cpus: Vec<u32>,
    /// Chosen by us, so that it may be moved.
    movable: bool,
}

impl CpuBalance {
    /// `online`: the host's CPUs that guests may have.
    pub fn new(online: &[u32]) -> CpuBalance {
        CpuBalance {
            load: online.iter().map(|c| (*c, 0)).collect(),
            placed: HashMap::new(),
        }
    }

    /// Places or replaces a guest; `None` when it may use all CPUs.
    /// A set that names no CPU of this host is an error.
    pub fn place(
        &mut self,
        uid: &str,
        limit: Option<&CpuLimit>,
    ) -> Result<Option<Vec<u32>>, String> {
        self.release(uid);
        let (cpus, movable) = match limit {
            None => return Ok(None),
            Some(CpuLimit::Count(count)) if *count >= self.load.len() => return Ok(None),
            Some(CpuLimit::Count(count)) => (self.least(*count), true),
            Some(CpuLimit::Set(wanted)) => {
                let here: Vec<u32> = wanted
                    .iter()
                    .copied()
                    .filter(|c| self.load.iter().any(|(l, _)| l == c))
                    .collect();
                if here.len() != wanted.len() {
                    return Err("the set names CPUs that this host does not have".to_owned());
                }
                (here, false)
            }
        };
        self.add(&cpus, 1);
        self.placed.insert(
            uid.to_owned(),
            Placement {
                cpus: cpus.clone(),
                movable,
            },
        );
        Ok(Some(cpus))
    }

    /// Takes note of where a running guest is already.
    pub fn adopt(&mut self, uid: &str, cpus: Vec<u32>, movable: bool) {
        self.release(uid);
        self.add(&cpus, 1);
        self.placed
            .insert(uid.to_owned(), Placement { cpus, movable });
    }

    pub fn release(&mut self, uid: &str) {
        if let Some(placement) = self.placed.remove(uid) {
            self.add(&placement.cpus, -1);
        }
    }

    /// Guests to move so that no CPU has two more than another, with their new CPUs. Bounded by `most` moves.
    pub fn rebalance(&mut self, most: usize) -> Vec<(String, Vec<u32>)> {
        let mut moves: Vec<(String, Vec<u32>)> = Vec::new();
        for _ in 0..most {
            let Some((uid, from, to)) = self.one_move() else {
                break;
            };
            let Some(placement) = self.placed.get_mut(&uid) else {
                break;
            };
            placement.cpus.retain(|c| *c != from);
            placement.cpus.push(to);
            placement.cpus.sort_unstable();
            let cpus = placement.cpus.clone();
            self.add(&[from], -1);
            self.add(&[to], 1);
            moves.retain(|(moved, _)| *moved != uid);
            moves.push((uid, cpus));
        }
        moves
    }

    fn one_move(&self) -> Option<(String, u32, u32)> {
        let (to, least) = *self.load.iter().min_by_key(|(_, load)| *load)?;
        let mut crowded: Vec<&(u32, usize)> =
            self.load.iter().filter(|(_, l)| *l > least + 1).collect();
        crowded.sort_by_key(|(_, load)| std::cmp::Reverse(*load));
        crowded.into_iter().find_map(|(from, _)| {
            let candidate = self
                .placed
                .iter()
                .filter(|(_, p)| p.movable && p.cpus.contains(from) && !p.cpus.contains(&to));
            candidate
                .map(|(uid, _)| uid)
                .min()
                .map(|uid| (uid.clone(), *from, to))
        })
    }

    fn least(&self, count: usize) -> Vec<u32> {
        let mut by_load = self.load.clone();
        by_load.sort_by_key(|(cpu, load)| (*load, *cpu));
        let mut cpus: Vec<u32> = by_load
            .into_iter()
            .take(count)
            .map(|(cpu, _)| cpu)
            .collect();
        cpus.sort_unstable();
        cpus
    }

    fn add(&mut self, cpus: &[u32], delta: isize) {
        for (cpu, load) in &mut self.load {
            if cpus.contains(cpu) {
                *load = load.saturating_add_signed(delta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn guests_spread() {
        let mut balance = CpuBalance::new(&[0, 1, 2, 3]);
        let one = CpuLimit::Count(1);
        for (uid, cpu) in [("a", 0), ("b", 1), ("c", 2), ("d", 3)] {
            assert_eq!(balance.place(uid, Some(&one)), Ok(Some(vec![cpu])));
        }
        balance.release("c");
        assert_eq!(balance.place("e", Some(&one)), Ok(Some(vec![2])));
        assert_eq!(balance.place("f", Some(&CpuLimit::Count(4))), Ok(None));
        assert!(balance.place("g", Some(&CpuLimit::Set(vec![9]))).is_err());
    }

    proptest! {
        #[test]
        fn rebalancing_evens_out(sizes in proptest::collection::vec(1usize..4, 1..30), drop in 0usize..30) {
            let mut balance = CpuBalance::new(&[0, 1, 2, 3, 4, 5]);
            for (i, size) in sizes.iter().enumerate() {
                balance.place(&i.to_string(), Some(&CpuLimit::Count(*size))).unwrap();
            }
            for i in 0..drop.min(sizes.len()) {
                balance.release(&i.to_string());
            }
            balance.rebalance(1000);
            let loads: Vec<usize> = balance.load.iter().map(|(_, l)| *l).collect();
            let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
            prop_assert!(spread <= 1, "{loads:?}");
        }
    }
}
