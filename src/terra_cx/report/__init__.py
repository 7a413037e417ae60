"""What a run tells about itself when it is over: the record, its JSON file and the lines on the terminal."""
