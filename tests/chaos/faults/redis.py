"""Faults of the ledger: Redis is away, forgets, is slow, or answers into the void."""

import random
import time

from redis import Redis

from tests.chaos.faults import Figures, fault
from tests.chaos.handlers import Quick, Urgent
from tests.chaos.proxy import Proxy
from tests.chaos.scene import Scene

UNSETTLED_SECONDS = 2.0
"""What ended so shortly before the ledger was lost is read again, and runs again: nothing remembers it."""

UNLEASED_SECONDS = 1.5
"""Until leases are renewed, what was admitted before is held by nobody, and a copy of it may run as well."""


def forgot(scene: Scene, what: str, at: float) -> None:
    """Say that the ledger was lost at an instant."""
    scene.happened(what, at - UNSETTLED_SECONDS, end=time.time() + UNLEASED_SECONDS)


def behind_proxy(scene: Scene) -> Proxy:
    """Put the workers' Redis behind a proxy and start them under load."""
    proxy = scene.proxy("redis")
    scene.under_load()
    return proxy


@fault("redis-down", seconds=100)
def redis_down(scene: Scene, seed: random.Random) -> Figures:
    """Redis is gone for 60 s: queues that need it wait, `critical` goes on."""
    figures = Figures()
    scene.under_load(40)
    payload = scene.publishing.payload
    with scene.incident("redis down"):
        scene.stack.service("redis").stop()
        scene.play(2)
        urgent = scene.publishing.publish([payload(Urgent, work_ms=5) for _ in range(100)])
        waiting = scene.publishing.publish([payload(Quick, work_ms=5) for _ in range(100)])
        scene.play(58)
        ended = set(scene.listener.ended)
        told = {event.job_id for event in scene.listener.told if event.kind != "queued"}
    went_on = sum(one.job_id in ended for one in urgent)
    figures.check(
        "critical goes on", went_on == 100, f"{went_on} of 100 ended", "critical jobs waited for Redis"
    )
    began = sum(one.job_id in told for one in waiting)
    figures.check("closed queues wait", began == 0, f"{began} of 100 began", "a job began without a lease")
    scene.recover(6, 60)
    return figures


@fault("redis-flushed", seconds=30, ci=True)
def redis_flushed(scene: Scene, seed: random.Random) -> Figures:
    """FLUSHALL, twice: leases, fences and the memory of what completed are gone, while jobs run."""
    figures = Figures()
    scene.under_load()
    with Redis.from_url(scene.settings.redis) as client:
        for _ in range(2):
            scene.play(seed.uniform(1, 3))
            began = time.time()
            client.flushall()
            forgot(scene, "redis flushed", began)
    scene.recover(6, 45)
    return figures


@fault("redis-restarted", seconds=30)
def redis_restarted(scene: Scene, seed: random.Random) -> Figures:
    """Redis is killed and starts again with whatever it kept, which may be nothing."""
    figures = Figures()
    scene.under_load()
    scene.play(seed.uniform(0, 2))
    began = time.time()
    service = scene.stack.service("redis")
    service.kill()
    service.start()
    forgot(scene, "redis restarted", began)
    scene.recover(6, 45)
    return figures


@fault("redis-slow", seconds=55)
def redis_slow(scene: Scene, seed: random.Random) -> Figures:
    """Each answer of Redis takes 2 s, as long as workers wait for one."""
    figures = Figures()
    proxy = behind_proxy(scene)
    with scene.incident("redis slow"):
        proxy.slow(2.0)
        scene.play(20)
    scene.recover(6, 45)
    return figures


@fault("redis-half-open", seconds=45)
def redis_half_open(scene: Scene, seed: random.Random) -> Figures:
    """Redis takes connections and questions and nothing comes back, for 12 s; then all of it arrives at once."""
    figures = Figures()
    proxy = behind_proxy(scene)
    with scene.incident("redis half-open"):
        proxy.drop()
        scene.play(12)
    scene.recover(6, 45)
    return figures


@fault("redis-answers-lost", seconds=45, ci=True)
def redis_answers_lost(scene: Scene, seed: random.Random) -> Figures:
    """Redis does what it is asked and its answers get lost: leases are granted that nobody heard of."""
    figures = Figures()
    proxy = behind_proxy(scene)
    for _ in range(3):
        with scene.incident("answers of redis lost"):
            proxy.swallow_answers()
            scene.play(seed.uniform(1, 4))
        proxy.heal()
        scene.play(2)
    scene.recover(6, 45)
    return figures


@fault("redis-lossy", seconds=45)
def redis_lossy(scene: Scene, seed: random.Random) -> Figures:
    """Connections to Redis break at random, two a second, for 15 s."""
    figures = Figures()
    proxy = behind_proxy(scene)
    with scene.incident("redis lossy"):
        proxy.lossy(0.9)
        scene.play(15)
    scene.recover(6, 45)
    return figures


@fault("redis-no-connections", seconds=55)
def redis_no_connections(scene: Scene, seed: random.Random) -> Figures:
    """Others hold all the connections that Redis has, for 10 s, and the workers' are closed."""
    figures = Figures()
    scene.under_load()
    clients = [Redis.from_url(scene.settings.redis) for _ in range(12)]
    try:
        with scene.incident("no connections to redis"):
            clients[0].config_set("maxclients", 10)
            clients[0].client_kill_filter(_type="normal", skipme=True)
            taken = 0
            for client in clients[1:]:
                try:
                    taken += bool(client.ping())
                except Exception as error:  # noqa: BLE001 - that is the point: no more of them
                    figures.note("refused", type(error).__name__)
                    break
            scene.play(10)
        figures.note("connections taken", taken)
    finally:
        clients[0].config_set("maxclients", 10_000)
        for client in clients:
            client.close()
    scene.recover(6, 45)
    return figures
