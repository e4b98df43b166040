"""Why an item is in a list: the codes that compiled code writes, and their names and words in messages."""

from __future__ import annotations

from features.messages import RecommendationReason

(VIEWED_AFTER, IN_SESSION, POPULAR, POPULAR_IN, NEW_IN, BOOSTED, DEMOTED, FRESH, OFFERED, TRENDING, VIEWED_LIVE
 ) = range(11)  # fmt: skip
NAMES: dict[int, RecommendationReason] = {
    VIEWED_AFTER: "viewed_after", IN_SESSION: "in_session", POPULAR: "popular", POPULAR_IN: "popular_in",
    NEW_IN: "new_in", BOOSTED: "boosted", DEMOTED: "demoted", FRESH: "fresh", OFFERED: "offered",
    TRENDING: "trending", VIEWED_LIVE: "viewed_after",
}  # fmt: skip
OF_CATEGORY = {POPULAR_IN: "popular in ", NEW_IN: "new in ", BOOSTED: "boosted: ", DEMOTED: "demoted: "}
OF_ITEM = {VIEWED_AFTER: "often viewed after {}", VIEWED_LIVE: "often viewed after {}",
           IN_SESSION: "viewed in this session"}  # fmt: skip
PLAIN = {VIEWED_AFTER: "often viewed with it", IN_SESSION: "viewed in this session", POPULAR: "popular now",
         OFFERED: "in the catalogue", POPULAR_IN: "popular in its category", NEW_IN: "new", BOOSTED: "boosted",
         DEMOTED: "demoted", FRESH: "newly available", TRENDING: "trending now",
         VIEWED_LIVE: "often viewed after it"}  # fmt: skip
