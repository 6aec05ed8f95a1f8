"""A fleet as queues: what `loadtest/simulate` computes with. loadtest/README.md lists the assumptions."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


class Clock:
    """Calls functions in the order of their times, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), call))

    def run(self, until: Callable[[], bool]) -> None:
        while self._events and not until():
            self.now, _, call = heapq.heappop(self._events)
            call()


class Cores:
    """Processor cores that stations share. Each station that has work gets one in turn, for one job."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.waiting: deque[Station] = deque()

    def wanted_by(self, station: Station) -> None:
        if self.free:
            self.free -= 1
            station.serve()
        else:
            self.waiting.append(station)

    def back(self) -> None:
        if self.waiting:
            self.waiting.popleft().serve()
        else:
            self.free += 1


class Station:
    """Threads that work on a queue in its order: a replica's answering thread, its hashing threads, a Redis."""

    def __init__(self, clock: Clock, threads: int = 1, room: float = float("inf"), cores: Cores | None = None) -> None:
        self.clock, self.idle, self.room, self.cores = clock, threads, room, cores
        self.queue: deque[tuple[float, Callable[[], None]]] = deque()
        # How long the threads were busy, together.
        self.busy = 0.0

    def take(self, seconds: float, then: Callable[[], None]) -> bool:
        """Queues one job. False if the queue is full."""
        if not self.idle and len(self.queue) >= self.room:
            return False
        self.queue.append((seconds, then))
        if self.idle:
            self.idle -= 1
            if self.cores:
                self.cores.wanted_by(self)
            else:
                self.serve()
        return True

    def serve(self) -> None:
        seconds, then = self.queue.popleft()
        self.busy += seconds

        def done() -> None:
            # In this order, so that a thread that goes on doesn't overtake others that wait for a core.
            if self.queue:
                if self.cores:
                    self.cores.back()
                    self.cores.wanted_by(self)
                else:
                    self.serve()
            else:
                self.idle += 1
                if self.cores:
                    self.cores.back()
            then()

        self.clock.after(seconds, done)


@dataclass
class Seen:
    """What clients saw, in seconds."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    # From the first counted answer to the last one.
    elapsed: float = 0.0
    # The busiest Redis's share of its time, and the average replica's.
    redis_load: float = 0.0
    replica_load: float = 0.0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.elapsed if self.elapsed else 0.0


class Draw:
    """Random numbers, the same in each run with the same seed."""

    def __init__(self, seed: int, variation: float) -> None:
        self.random = random.Random(seed)
        # Of a gamma distribution with this coefficient of variation; 1 is the exponential distribution.
        self.shape = 1 / variation**2 if variation else None

    def service(self, mean: float) -> float:
        return self.random.gammavariate(self.shape, mean / self.shape) if self.shape and mean else mean

    def gap(self, rate: float) -> float:
        return self.random.expovariate(rate)


class LeastBusy:
    """nginx's least_conn: the replica with the fewest requests under way, as one of several nginx sees them."""

    def __init__(self, replicas: int, draw: Draw) -> None:
        self.under_way, self.draw = [0] * replicas, draw
        # With entries that are no longer true, which are skipped.
        self.heap = [(0, draw.random.random(), number) for number in range(replicas)]
        heapq.heapify(self.heap)

    def _changed(self, number: int, by: int) -> None:
        self.under_way[number] += by
        heapq.heappush(self.heap, (self.under_way[number], self.draw.random.random(), number))

    def pick(self) -> int:
        while self.heap[0][0] != self.under_way[self.heap[0][2]]:
            heapq.heappop(self.heap)
        number = heapq.heappop(self.heap)[2]
        self._changed(number, 1)
        return number

    def done(self, number: int) -> None:
        self._changed(number, -1)


@dataclass
class Shape:
    """A fleet, in seconds and counts."""

    replicas: int
    # CPU of one session check in the server and in Redis.
    server: float
    redis: float
    shards: int = 1
    balancers: int = 2
    # One way between two machines.
    network: float = 0.0
    variation: float = 1.0
    # CPU of one login, threads that hash at once in a replica, and logins that may wait for them.
    login: float = 0.0
    hashing: int = 1
    room: int = 16


def offered(
    shape: Shape, clock: Clock, draw: Draw, per_second: float, count: int, serve: Callable[[int, Callable], None]
) -> Seen:
    """Requests that arrive at random, whether or not the fleet keeps up. `serve` gets a replica's number and what to
    call with the answer: `answered()` or `answered(is_refused=True)`. The first tenth is not counted."""
    seen = Seen()
    balancers = [LeastBusy(shape.replicas, draw) for _ in range(shape.balancers)]
    state = {"begun": 0, "ended": 0, "from": 0.0}

    def arrive() -> None:
        state["begun"] += 1
        if state["begun"] < count:
            clock.after(draw.gap(per_second), arrive)
        began, balancer = clock.now, draw.random.choice(balancers)
        number = balancer.pick()

        def answered(is_refused: bool = False) -> None:
            balancer.done(number)
            state["ended"] += 1
            if state["ended"] * 10 <= count:
                state["from"] = clock.now
            elif is_refused:
                seen.refused += 1
            else:
                seen.latencies.append(clock.now - began + 2 * shape.network)

        serve(number, answered)

    clock.after(draw.gap(per_second), arrive)
    clock.run(lambda: state["ended"] >= count)
    seen.elapsed = clock.now - state["from"]
    return seen


def checks(shape: Shape, per_second: float, count: int, seed: int = 1) -> Seen:
    """Session checks that arrive at random."""
    draw, clock = Draw(seed, shape.variation), Clock()
    replicas = [Station(clock) for _ in range(shape.replicas)]
    redis = [Station(clock) for _ in range(shape.shards)]

    def serve(number: int, answered: Callable) -> None:
        replica, shard = replicas[number], draw.random.choice(redis)

        # A check is half done when it asks Redis.
        def back() -> None:
            replica.take(draw.service(shape.server / 2), answered)

        def ask() -> None:
            shard.take(draw.service(shape.redis), lambda: clock.after(shape.network, back))

        replica.take(draw.service(shape.server / 2), lambda: clock.after(shape.network, ask))

    seen = offered(shape, clock, draw, per_second, count, serve)
    seen.redis_load = max(station.busy for station in redis) / clock.now
    seen.replica_load = sum(station.busy for station in replicas) / shape.replicas / clock.now
    return seen


def logins(shape: Shape, per_second: float, count: int, seed: int = 1) -> Seen:
    """Logins that arrive at random. Those that find a replica's queue full are refused, as with 503 `overloaded`."""
    draw, clock = Draw(seed, shape.variation), Clock()
    replicas = [Station(clock, shape.hashing, shape.room) for _ in range(shape.replicas)]

    def serve(number: int, answered: Callable) -> None:
        if not replicas[number].take(draw.service(shape.login), answered):
            answered(is_refused=True)

    seen = offered(shape, clock, draw, per_second, count, serve)
    seen.replica_load = sum(station.busy for station in replicas) / shape.replicas / shape.hashing / clock.now
    return seen


def on_one_machine(
    shape: Shape, connections: int, think: float, client: float, cores: int, count: int, seed: int = 1, idle: float = 0
) -> Seen:
    """Clients that each wait up to twice `think` between an answer and the next check, on one machine: all processes
    share its cores, and each replica has a load generator of its own, which takes `client` seconds for each check. Each
    check also takes `idle` seconds in which nobody works, such as wake-ups."""
    draw, clock, seen = Draw(seed, shape.variation), Clock(), Seen()
    pool = Cores(cores)
    generators = [Station(clock, cores=pool) for _ in range(shape.replicas)]
    replicas = [Station(clock, cores=pool) for _ in range(shape.replicas)]
    redis = Station(clock, cores=pool)
    state = {"ended": 0, "from": 0.0}

    def send(number: int) -> None:
        def sent() -> None:
            began = clock.now

            def answered() -> None:
                state["ended"] += 1
                if state["ended"] * 10 <= count:
                    state["from"] = clock.now
                else:
                    seen.latencies.append(clock.now - began)
                clock.after(draw.random.uniform(0, 2 * think), lambda: send(number))

            # The generator reads the answer, then sends the next request.
            def read() -> None:
                generators[number].take(draw.service(client / 2), answered)

            def back() -> None:
                clock.after(idle, lambda: replicas[number].take(draw.service(shape.server / 2), read))

            replicas[number].take(draw.service(shape.server / 2), lambda: redis.take(draw.service(shape.redis), back))

        generators[number].take(draw.service(client / 2), sent)

    for number in range(connections):
        replica = number % shape.replicas
        clock.after(draw.random.uniform(0, 2 * think), lambda replica=replica: send(replica))
    clock.run(lambda: state["ended"] >= count)
    seen.elapsed = clock.now - state["from"]
    seen.redis_load = redis.busy / clock.now
    seen.replica_load = sum(station.busy for station in replicas) / shape.replicas / clock.now
    return seen
