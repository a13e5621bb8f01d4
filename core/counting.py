"""Numbers of things in the sentences that people read."""


def counted(number: int, one: str, several: str = "") -> str:
    """Say how many there are of something, 1 LoRA or 2 LoRAs.

    one      the word, or the words, for one
    several  those for any other number; the word with an s where it is empty
    """
    return f"{number} {one if number == 1 else several or one + 's'}"
