"""Workers that are killed: anywhere, and at exact steps of a cycle."""

from __future__ import annotations

from chaos.play import Round
from chaos.registry import fault


@fault(1, short=True)
def killed_in_a_cycle(play: Round) -> None:
    """SIGKILL in the middle of a cycle."""
    step = play.random.choice(("computed", "half-sent", "half-applied"))
    play.begin(point=f"{step}:{play.random.randrange(5, 60)}:kill")
    play.feed(4000)
    first = play.workers[0]
    code = play.wait_for_end(first, f"the worker reaches {step}")
    play.expect(code == -9, f"the worker ended with {code}, not by SIGKILL")
    injury = play.injury()
    second = play.start()
    play.recovered(injury)
    play.kill(second)
    injury = play.injury()
    play.start()
    play.recovered(injury)
    play.finish()
