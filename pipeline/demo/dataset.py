"""Draws the demonstration data set, an ordinary MVSA folder.

The text and the image of a post each have a mood of their own, and the label rule merges the two into the post's label.
A mood reaches the pixels only through what is drawn and the words only through what is said: sizes, lengths, frames,
hashtag counts and JPEG quality are drawn without looking at it. Some posts read one mood off, as real annotations do.
What the image shows (sea, city, faces ...) is a further target of the data set, which the image alone tells.
"""

import math
import random
import re
from pathlib import Path
from string import ascii_letters, digits

from pipeline.common.errors import InputError, option
from pipeline.common.files import csv_text, regular_bytes
from pipeline.common.folders import remove_file, require_no_link
from pipeline.demo.pictures import draw_picture
from pipeline.demo.scenes import NEGATIVE, NEUTRAL, POSITIVE

NAMES = {POSITIVE: "positive", NEUTRAL: "neutral", NEGATIVE: "negative"}

# Shares of (text mood, image mood) among the posts that survive the label rule. A perfect reader of one modality alone
# gets 75.5 % of the final labels; the other quarter is decided by the modality that it does not see.
SURVIVING = {
    (POSITIVE, POSITIVE): 0.175, (NEGATIVE, NEGATIVE): 0.145, (NEUTRAL, NEUTRAL): 0.19,
    (POSITIVE, NEUTRAL): 0.135, (NEGATIVE, NEUTRAL): 0.11, (NEUTRAL, POSITIVE): 0.135, (NEUTRAL, NEGATIVE): 0.11,
}  # fmt: skip
CONFLICTING = {(POSITIVE, NEGATIVE): 0.03, (NEGATIVE, POSITIVE): 0.03}  # on top of the survivors; the rule drops them
NO_MAJORITY = 0.04  # share of posts, on top, whose text or image got three different labels from three annotators
ONE_DISSENTS = 0.25  # share of the other judgements in which one annotator of three disagrees
TEXT_OFF, IMAGE_OFF = 0.02, 0.04  # share of texts and of images that read one mood off their label
RETWEETS = 0.03

SCENE = "scene"  # the further target: what the image shows, whatever its mood
NOTE = "README.txt"
_NOTE_TEXT = "A data set drawn by code for demonstration. `cli.py demo` replaces this folder.\n"


def replace(folder: Path, *, posts: int, seed: int) -> None:
    """Draw into `folder` in place of what was drawn there before. InputError if something else lies there."""
    if folder.exists():
        note = folder / NOTE
        if not _is_ours(note):
            raise InputError(
                f"{folder}: already exists and was not drawn by `demo`; name another folder with {option('out')}"
            )
        require_no_link(folder / "data", folder)
        for file in [*(folder / "data").glob("*.jpg"), *(folder / "data").glob("*.txt")]:
            remove_file(file)
    else:
        folder.mkdir(parents=True)
        (folder / NOTE).write_text(_NOTE_TEXT, encoding="utf-8")
    draw(folder, posts=posts, seed=seed)


def _is_ours(note: Path) -> bool:
    try:
        return regular_bytes(note, len(_NOTE_TEXT)) == _NOTE_TEXT.encode()
    except OSError:
        return False


def draw(folder: Path, *, posts: int = 1000, seed: int = 0, form: str = "single") -> Path:
    """Draw a data set into `folder` (made if need be) and return the folder.

    `posts` (at least 20) is the number of posts that survive the label rule; about 6 % more conflict and, with `form`
    "multiple" (three annotators; "single" has one), another 4 % have no majority. Ids are "1", "2", ... in random order
    of label. The same arguments give the same bytes. ValueError names an argument out of range.
    """
    if posts < 20:
        raise ValueError(f"posts must be at least 20, so that every label occurs, not {posts}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, but is {seed}")
    if form not in ("single", "multiple"):
        raise ValueError(f"form must be 'single' or 'multiple', not {form!r}")
    rng = random.Random(f"posts {seed}")
    moods = _share_out(SURVIVING, posts) + _share_out(CONFLICTING, max(2, round(posts * sum(CONFLICTING.values()))))
    split_votes = [False] * len(moods)
    if form == "multiple":
        extra = max(2, round(posts * NO_MAJORITY))
        moods += rng.choices(list(SURVIVING), list(SURVIVING.values()), k=extra)
        split_votes += [True] * extra
    plan = list(zip(moods, split_votes, strict=True))
    rng.shuffle(plan)

    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    rows = ["\t".join(["ID"] + ["text,image"] * (1 if form == "single" else 3))]
    scenes: list[list[str]] = []
    said: dict[int, list[str]] = {mood: [] for mood in NAMES}
    for number, ((text_mood, image_mood), split_vote) in enumerate(plan, start=1):
        # Each post and modality has its own stream, so that one more draw in a text never changes a picture.
        text_rng, image_rng, vote_rng = (random.Random(f"{kind} {seed} {number}") for kind in ("text", "image", "vote"))
        retweet = bool(said[text_mood]) and text_rng.random() < RETWEETS
        text_shown, image_shown = _shown(text_rng, text_mood, TEXT_OFF), _shown(image_rng, image_mood, IMAGE_OFF)
        body = text_rng.choice(said[text_mood]) if retweet else write_tweet(text_rng, text_shown)
        said[text_mood].append(body)
        (data / f"{number}.txt").write_bytes((address(text_rng, body) + "\n").encode("gb18030"))
        picture = draw_picture(image_rng, image_shown)
        picture.image.save(data / f"{number}.jpg", quality=picture.quality)
        scenes.append([str(number), picture.scene])
        votes = [(text_mood, image_mood)] if form == "single" else _vote(vote_rng, text_mood, image_mood, split_vote)
        rows.append("\t".join([str(number)] + [f"{NAMES[text]},{NAMES[image]}" for text, image in votes]))
    (folder / "labelResultAll.txt").write_bytes(("\n".join(rows) + "\n").encode("ascii"))
    (folder / "targets.csv").write_bytes(csv_text(("id", SCENE), scenes).encode("ascii"))
    return folder


def _share_out(shares: dict[tuple[int, int], float], count: int) -> list[tuple[int, int]]:
    """`count` cells in proportion to their shares, by largest remainder: no seed has luckier proportions."""
    exact = {cell: share / sum(shares.values()) * count for cell, share in shares.items()}
    counts = {cell: math.floor(value) for cell, value in exact.items()}
    by_remainder = sorted(exact, key=lambda cell: counts[cell] - exact[cell])
    for cell in by_remainder[: count - sum(counts.values())]:
        counts[cell] += 1
    return [cell for cell, repeat in counts.items() for _ in range(repeat)]


def _vote(rng: random.Random, text: int, image: int, split_vote: bool) -> list[tuple[int, int]]:
    """The labels of three annotators for (text, image); a split vote has no majority in one of the two."""
    unsure = rng.choice(("text", "image")) if split_vote else None
    columns = []
    for kind, mood in (("text", text), ("image", image)):
        votes = [mood] * 3
        if kind == unsure:
            votes = rng.sample(list(NAMES), 3)
        elif rng.random() < ONE_DISSENTS:
            votes[rng.randrange(3)] = rng.choice([other for other in NAMES if other != mood])
        columns.append(votes)
    return list(zip(*columns, strict=True))


def _shown(rng: random.Random, mood: int, share_off: float) -> int:
    """The mood that the post shows: its own, or now and then a neighbouring one."""
    if rng.random() >= share_off:
        return mood
    return rng.choice((POSITIVE, NEGATIVE)) if mood == NEUTRAL else NEUTRAL


# --- Tweets


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.replace("\n", " ").split(" / ")]


# Words in braces are filled in below. No phrase has stops or commas, and each mood has about as many apostrophes.
SAYINGS = {
    POSITIVE: _phrases("""loving every minute of {thing} / {thing} made my whole day / so proud of {who} right now /
        can't stop smiling since {place} / best {time} in ages / {thing} was wonderful /
        what a lovely surprise from {who} / thank you {who} you're the kindest / feeling so lucky today /
        {who} and I laughed until we cried / not bad at all this {item} / no complaints about {thing} it was superb /
        really can't fault {thing} / I could get used to {place} it is beautiful /
        finally got the good news I hoped for / it's pure joy / so grateful for {who} / {thing} turned out brilliantly /
        I'm having the time of my life at {place} / my heart is full after {thing} / {who} won and we are all cheering /
        couldn't be happier with {thing} / warm cosy and content at {place} / delighted to see {who} again /
        everything about {thing} is perfect / I've never been this excited about {thing} /
        {who} you're an absolute star / it wasn't a wasted second / such a sweet moment with {who} /
        woke up happy and it stayed that way / a hug from {who} fixed everything / nothing beats {place} in this light /
        we did it and it feels amazing / I adore {thing} / hooray for {who} and a fantastic {time} /
        wouldn't change a thing about {thing} / {place} is heaven today / still glowing from {thing} /
        hard to dislike {thing} it is charming / so much fun at {place}"""),
    NEGATIVE: _phrases("""hated every minute of {thing} / {thing} ruined my whole day /
        so disappointed in {who} right now / can't stop crying since {place} / worst {time} in ages /
        {thing} was dreadful / what a nasty surprise from {who} / no thanks to {who} for the mess /
        feeling so lonely today / {who} and I argued until we both cried / not good at all this {item} /
        can't say {thing} was any good / nothing nice to say about {thing} /
        I'm never going back to {place} it is filthy / got the bad news I was afraid of / it's pure misery /
        so angry with {who} / {thing} went horribly wrong / having a terrible time at {place} /
        my heart is broken after {thing} / {who} lost and we are all gutted / couldn't be less happy with {thing} /
        cold wet and miserable at {place} / heartbroken to lose {who} / everything about {thing} is broken /
        I've never been this fed up with {thing} / {who} let everybody down / it wasn't worth the wait and it hurts /
        such a cruel thing to say about {who} / woke up sad and it stayed that way / {who} left and nothing helps /
        I wouldn't send anyone to {place} / we've failed and it feels awful / I despise {thing} /
        shame on {who} for an ugly {time} / wouldn't wish {thing} on anyone / {place} is a nightmare today /
        still shaking with rage over {thing} / hard to enjoy {thing} it is painful / so scared and tired at {place}"""),
    NEUTRAL: _phrases("""looking through the notes on {thing} / {thing} is listed for the afternoon /
        on the phone with {who} right now / I'm walking past {place} / same {time} as last year /
        {thing} was moved to Thursday / there's a message from {who} / {who} you are next on the list /
        sitting by the window today / {who} and I compared the two timetables / not sure yet about {thing} /
        I don't have a view on {thing} / there isn't much to say about {thing} /
        I will be passing {place} at about four / got the form that I asked for / that's the usual route /
        I haven't asked {who} / {thing} takes about an hour / changing trains at {place} / {thing} isn't until six /
        {who} spoke and then we all took a seat / it's either before or after {thing} /
        doors are open until eight at {place} / scheduled to see {who} again /
        everything about {thing} is on the website / this is the third part of {thing} /
        {who} has the keys for the office / it's as long as the map said / such is the plan according to {who} /
        woke up at seven and took the bus / {who} called about the parcel / somebody is painting a wall at {place} /
        we copied the list into the file / I have a ticket for {thing} / agenda from {who} for the {time} /
        wouldn't know the date of {thing} / {place} is on the left today / still reading the report about {thing} /
        hard to tell when {thing} begins / that's the entrance of {place}"""),
}  # fmt: skip
FACTS = _phrases("""{thing} starts at seven / the bus stops near {place} / {who} took this picture /
        on the road to {place} / page two of {thing} / day four of {thing} / {who} is here too / it is Tuesday /
        about {thing} / at {place} with {who} / the sign says {place} / two tickets for {thing} / seen from {place} /
        a photo from {who} / here is {thing}""")
FILLERS = {
    # Some names carry a mood that means nothing, as real ones do.
    "thing": _phrases("""the concert / the new phone / the match / this book / the meeting / my exam / the train ride /
        the show / our garden / the Sad Songs night / that film / the café menu / the football final /
        the Happy Hour talk / the new album / the exhibition / the gig / the update / the cooking class / the record /
        the parade / the interview"""),
    "item": _phrases("""concert / phone / film / sandwich / hotel / album / train ride / show / café / book / class /
        playlist"""),
    "who": _phrases("""my sister / the team / Zoë / my neighbour / José / our teacher / the crew / grandma / Jürgen /
        the driver / my brother / the band / Dr. Meyer / Aunt Joy / the coach / 小明 / my flatmate / the twins / Renée /
        the kids"""),
    "place": _phrases("""the station / Happy Valley / Main Street / São Paulo / the harbour / the office / Köln /
        the museum / Dark Lane / the café / the airport / the library / the square / 北京 / the lake / the park /
        the market / Málaga"""),
    "time": _phrases("morning / weekend / evening / Monday / holiday / birthday / afternoon / trip"),
}
OPENINGS = _phrases("so / ok / well / today: / tonight: / right, / honestly / update: / again / this morning: / hey")
TAGS = {
    POSITIVE: _phrases("#blessed / #happy / #love / #winning / #goodvibes / #yay / #smile / #bestday"),
    NEGATIVE: _phrases("#fail / #sad / #worst / #angry / #badday / #ugh / #tears / #heartbroken"),
    NEUTRAL: _phrases("#today / #city / #photo / #news / #monday / #travel / #weather / #café / #tv / #2014 / #work"),
}
ACCOUNTS = _phrases("@anna_k / @thebluebus / @mr_happy / @cityradio / @grumpycat / @leo99 / @newsdesk / @m_weber")
ENDINGS = ("", "", ".", ".", "!", "!!", "...", "…", " :)", " :(", " :/", " ;)", " xx", " © me", " ~", " 🙈", "?!")


def write_tweet(rng: random.Random, mood: int) -> str:
    """The words of a tweet with its hashtags, without links and mentions."""
    layout = rng.choice(("say", "fact, say", "say, fact", *["say, say"] * 3)).split(", ")
    joint, tags = rng.choice((", ", ". ", " - ", " … ")), rng.choice((0, 0, 0, 1, 1, 2))
    opening, ending = rng.choice([*OPENINGS, *[""] * 12]), rng.choice(ENDINGS)

    def say(mood: int) -> str:
        parts = [_fill(rng, rng.choice(SAYINGS[mood] if part == "say" else FACTS)) for part in layout]
        hashtags = [rng.choice(TAGS[mood if rng.random() < 0.4 else NEUTRAL]) for _ in range(tags)]
        return " ".join([f"{opening} {joint.join(parts)}{ending}".strip(), *hashtags])

    # The length is that of a tweet of any mood, whatever this one's mood: of some wordings the nearest is taken.
    like = say(rng.choice(list(NAMES)))
    wordings = [say(mood) for _ in range(8)]
    return min(wordings, key=lambda text: abs(len(text) - len(like)) + 6 * abs(len(text.split()) - len(like.split())))


def _fill(rng: random.Random, phrase: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: rng.choice(FILLERS[slot[1]]), phrase)


def address(rng: random.Random, body: str) -> str:
    """The tweet as it was posted: with the retweet mark, mentions and links, which duplicates may differ in."""
    if rng.random() < 0.3:
        body = body[0].upper() + body[1:]
    if rng.random() < 0.25:
        body = f"{body} {rng.choice(ACCOUNTS)}"
    if rng.random() < 0.55:
        body = f"{body} http://t.co/{''.join(rng.choices(ascii_letters + digits, k=10))}"
    return f"RT {rng.choice(ACCOUNTS)}: {body}" if rng.random() < 0.2 else body
