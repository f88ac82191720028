package comments

func Exported() {}
