"""The phrases, words and numbers that sampled constraints are filled with.

All in one place, so that a held-out part can be cut off, which shares no phrase and no word with
the rest.
"""

from dataclasses import dataclass, fields


# fmt: off
@dataclass(frozen=True)
class Values:
    starts: tuple[str, ...] = (
        "Well", "Well then", "Here is", "In short", "Good question", "Let me see", "To begin",
        "First of all", "Of course", "As you know", "Once upon a time", "In my view", "Indeed",
        "Simply put", "Happily", "To be honest", "Dear friend", "Let us begin", "Right away",
        "On the whole", "Believe it or not", "Without doubt", "Hello there", "For a start",
        "Naturally", "In a word", "Listen", "Imagine this", "By the way", "Truth be told",
        "At first sight", "Picture this", "You see", "Look closely", "Now then", "In general",
        "Surely", "Good news", "Here we go", "Fair enough", "Funny enough", "Broadly speaking",
        "Today", "Some say", "Many people think", "Let me explain", "Here goes", "Ah yes",
    )
    ends: tuple[str, ...] = (
        "That is all", "I hope this helps", "The end", "Have a good day", "Thank you",
        "And so it goes", "Good luck", "That is the point", "Take care", "See you soon",
        "Stay curious", "Enjoy it", "Nothing more to say", "So be it", "Try it today",
        "That is my answer", "Let me know", "All the best", "It is worth it", "You are welcome",
        "Until next time", "That settles it", "I am sure of it", "Ask me anything", "Keep going",
        "Goodbye for now", "Simple as that", "That is it.", "Be well.", "Now you know.",
        "Good night.", "What a joy!", "Give it a try!", "Peace to all", "Life goes on",
        "End of answer", "Thanks for asking", "With kind regards", "Never forget that",
        "It really is", "Case closed", "This is the way", "Cheers!", "Over and out",
    )
    nouns: tuple[str, ...] = (
        "river", "window", "garden", "morning", "stone", "candle", "forest", "bridge", "letter",
        "winter", "summer", "bread", "music", "silver", "mountain", "shadow", "village", "harbor",
        "island", "mirror", "clock", "feather", "honey", "lantern", "meadow", "ocean", "paper",
        "pocket", "rain", "road", "sailor", "season", "secret", "smile", "song", "spring",
        "star", "story", "street", "thunder", "valley", "voice", "wheel", "wind", "wonder",
        "basket", "blanket", "butter", "castle", "cloud", "copper", "corner", "daughter",
        "dream", "echo", "engine", "flame", "friend", "journey", "kitchen", "ladder", "market",
        "memory", "orchard", "pillow", "puzzle", "rhythm", "signal", "teacher", "treasure",
    )
    adjectives: tuple[str, ...] = (
        "gentle", "quiet", "bright", "simple", "golden", "hidden", "brave", "clever", "curious",
        "distant", "eager", "famous", "fresh", "hollow", "honest", "humble", "lively", "lonely",
        "patient", "proud", "rare", "silent", "smooth", "steady", "strange", "tender", "tiny",
        "useful", "warm", "wild",
    )
    avoid_adverbs: tuple[str, ...] = (
        "very", "really", "always", "often", "also", "just", "quite", "usually", "never",
        "truly", "simply", "still", "almost", "mostly", "sometimes", "deeply", "certainly",
        "clearly", "even", "perhaps",
    )
    avoid_adjectives: tuple[str, ...] = (
        "beautiful", "good", "great", "little", "nice", "big", "small", "old", "new", "special",
        "wonderful", "important", "long", "happy", "perfect", "soft", "strong", "sweet",
        "common", "lovely",
    )
    keys: tuple[str, ...] = (
        "title", "text", "name", "summary", "answer", "reason", "tip", "mood", "color", "place",
        "detail", "kind", "idea", "note", "use", "origin",
    )
    openings: tuple[str, ...] = (
        "The old clock stopped at noon.", "Nobody had opened the door for years.",
        "It began with a letter.", "Mara woke before the birds.",
        "The train was late again.", "A stranger came to the village.",
        "Rain fell on the empty market.", "The map had one corner missing.",
        "Grandfather never spoke about the sea.", "There was a light in the tower.",
        "Tom found the key under a stone.", "The last ship left at dawn.",
        "Snow covered the road that night.", "Everyone knew the baker was lying.",
        "The dog would not stop barking.", "On Monday the river turned green.",
        "Lena had three minutes left.", "The circus arrived without a sound.",
        "My brother never kept a secret.", "The garden gate stood open.",
    )
    closings: tuple[str, ...] = (
        "And the clock struck one.", "She never looked back.", "The door was open at last.",
        "They laughed until the morning.", "Only the sea knew the truth.",
        "He put the key back under the stone.", "Nobody asked about it again.",
        "The light went out for good.", "And that was enough.", "So the village slept in peace.",
        "The letter was never sent.", "At last the rain had stopped.",
        "They called it home from then on.", "The dog lay down and slept.",
        "It was only the beginning.", "The road was quiet once more.",
        "And he smiled for the first time.", "The map was complete.",
        "Then the snow covered everything.", "Everyone kept the secret.",
    )
    letters: tuple[str, ...] = tuple("abcdefghijklmnopqrstuvwxyz")
    # fmt: on

    @property
    def keywords(self) -> tuple[str, ...]:
        return self.nouns + self.adjectives

    @property
    def avoided(self) -> tuple[str, ...]:
        return self.avoid_adverbs + self.avoid_adjectives

    def part(self, *, heldout: bool) -> "Values":
        """Every fourth item of each list, or the other three quarters."""
        lists = {field.name: getattr(self, field.name) for field in fields(self)}
        return Values(**{
            name: tuple(item for n, item in enumerate(items) if (n % 4 == 3) == heldout)
            for name, items in lists.items()
        })  # fmt: skip

    def swap(self, word: str, turn: int) -> str | None:
        """Another word of the same sort, where the word is known."""
        for group in (self.nouns, self.adjectives):
            if word in group:
                return group[(group.index(word) + 1 + turn % (len(group) - 1)) % len(group)]
        return None


VALUES = Values()
