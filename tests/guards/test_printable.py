from guards.printable import printable


def test_no_text_can_command_a_terminal():
    assert printable("a\tb\n\x1b[2J\x00é\u202e\x9b\r") == "a\tb\n\\x1b[2J\\x00é\\u202e\\x9b\\r"


def test_lone_surrogates_become_text_that_utf_8_can_hold():
    assert printable("\ud800x\udcff").encode() == b"\\ud800x\\udcff"
