"""Reading and drawing studies: images, texts and labels, from whatever source."""
